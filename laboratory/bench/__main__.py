"""Run the benchmark: `python -m laboratory.bench [--device cuda]` (make bench).

Missing checkpoint, artifacts and images are made first and kept in build/bench. Every server runs
twice, in turns, so that a slow minute of the machine does not decide. The tables are written to
laboratory/results/bench.md: ours against the best peer. Rates are medians of the rounds,
percentiles are over all answers. On a GPU they are written to bench-cuda.md, which no page shows.
"""

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from laboratory.bench.load import (
    OURS,
    OURS_DEFAULT,
    RANDOM_MODEL,
    SERVERS,
    SHORT_TOKENS,
    Round,
    Server,
    Workload,
    rounds_of,
)
from laboratory.processes import ROOT
from wire.artifacts.manifest import Device
from wire.host import num_cores

Rounds = dict[tuple[Server, Workload], list[Round]]

_FOLDER = ROOT / "build" / "bench"
_RESULTS = ROOT / "laboratory" / "results"
_NUM_RUNS = 2
_RATES = ("requests/s", "tokens/s")  # of the other measures, less is better


def parse(arguments: Sequence[str] | None, has_gpu: bool) -> Device:
    """Return the device on which all servers run."""
    parser = argparse.ArgumentParser("python -m laboratory.bench")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    device: Device = parser.parse_args(arguments).device
    if device == "cuda" and not has_gpu:
        parser.error(
            f"--device cuda: torch {torch.__version__} finds no GPU. On a host with one,"
            " `make gpu-check` makes an environment: build/gpu/bin/python -m laboratory.bench"
        )
    return device


def main() -> None:
    """Measure every server and write the report."""
    device = parse(None, torch.cuda.is_available())
    # What is missing is made in a process that reads the bench's own store.
    environment = {"BENTOML_HOME": str(_FOLDER / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "laboratory.bench.material", str(_FOLDER)]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=sys.stderr, check=True)
    rounds: Rounds = {}
    for run, server in product(range(_NUM_RUNS), SERVERS):
        for workload, result in rounds_of(server, _FOLDER, run, device):
            print(f"{server.name}, {workload.title}: {result.elapsed_s:.1f} s", flush=True)
            rounds.setdefault((server, workload), []).append(result)
    num_same, num_all = num_equal(rounds)
    facts = {
        "command": "`make bench`",
        "machine": f"{processor_name()}, {num_cores()} cores of {os.cpu_count()}",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        f"{RANDOM_MODEL}, texts equal to the peer's": f"{num_same} of {num_all}",
    }
    print(ratio_table(rounds))
    results = _RESULTS / ("bench.md" if device == "cpu" else f"bench-{device}.md")
    results.write_text(markdown(rounds, facts), encoding="utf-8")
    print(f"written to {results}; `python -m docs.tables` updates the pages")


def measures_of(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the measures; percentiles are answers, by nearest rank, NaN without short ones."""
    rates = []
    token_rates = []
    latencies_ms = []
    short_ms = []
    for result in rounds:
        num_tokens = 0
        for sample in result.samples:
            num_tokens += sample.num_tokens
            latencies_ms.append(1000 * sample.latency_s)
            if sample.max_new_tokens == SHORT_TOKENS:
                short_ms.append(1000 * sample.latency_s)
        rates.append(len(result.samples) / result.elapsed_s)
        token_rates.append(num_tokens / result.elapsed_s)
    return {
        "requests/s": statistics.median(rates),
        "tokens/s": statistics.median(token_rates),
        "p50, ms": float(np.percentile(latencies_ms, 50, method="inverted_cdf")),
        "p95 of short ones, ms": float(
            np.percentile(short_ms or [math.nan], 95, method="inverted_cdf")
        ),
    }


def markdown(rounds: Rounds, facts: Mapping[str, str]) -> str:
    """Return the report; docs/tables.py copies its sections by their titles."""
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"# Bench\n\n{lines}\n\n## Ours ÷ best peer\n\n{ratio_table(rounds)}\n"


def ratio_table(rounds: Rounds) -> str:
    """Return a row for each measure of a workload that ours and a peer ran."""
    rows = []
    for (server, workload), server_rounds in rounds.items():
        if server.peer is not None:
            continue
        peers = {}
        for (peer, other), peer_rounds in rounds.items():
            if other == workload and peer.peer is not None:
                peers[peer.name] = measures_of(peer_rounds)
        label = f"{RANDOM_MODEL}, default precision" if server == OURS_DEFAULT else RANDOM_MODEL
        ours = measures_of(server_rounds)
        for measure in workload.compared:
            values = {name: measures[measure] for name, measures in peers.items()}
            best = (max if measure in _RATES else min)(values, key=values.__getitem__)
            cells = [_digits(ours[measure]), _digits(values[best]), best]
            ratio = f"{ours[measure] / values[best]:.2f}"
            rows.append([workload.title, label, measure, *cells, ratio])
    rows.sort(key=lambda row: row[0])
    header = ["workload", "model", "measure", "ours", "best peer", "peer", "ours ÷ peer"]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


def processor_name() -> str:
    """Return the model name of the processor, or its architecture if Linux gives no name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _digits(value: float) -> str:
    """Return at least three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def num_equal(rounds: Rounds) -> tuple[int, int]:
    """Return how many of the peers' answers equal ours to the same request, and of how many."""
    num_same = 0
    num_all = 0
    for (peer, workload), peer_rounds in rounds.items():
        if peer.peer is None:
            continue
        for ours, theirs in zip(rounds[OURS, workload], peer_rounds, strict=True):
            for sample, same in zip(ours.samples, theirs.samples, strict=True):
                num_all += 1
                num_same += sample.text == same.text
    return num_same, num_all


if __name__ == "__main__":
    main()
