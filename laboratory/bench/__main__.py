"""Run the benchmark: `python -m laboratory.bench [--minutes N] [--models ID …]` (make bench).

Missing checkpoints, artifacts and images are made first and kept in build/bench. Every server runs
twice, in turns, so that a slow minute of the machine does not decide. The tables are written to
laboratory/results/bench.md.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from laboratory.bench.load import MODELS, RANDOM_MODEL, Round, WorkloadName
from laboratory.bench.report import markdown, num_equal, ratio_table
from laboratory.bench.servers import Server, rounds_of, servers_of
from loadtest.figures import processor_name
from loadtest.processes import NUM_CORES, ROOT

_FOLDER = ROOT / "build" / "bench"
_NUM_RUNS = 2
_START_S = 20.0  # a server of real size starts


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every server of every model and write the report."""
    parsed = _parse(arguments)
    _make_material(parsed.models)
    deadline_s = time.monotonic() + parsed.minutes * 60
    rounds: dict[tuple[str, Server, WorkloadName], list[Round]] = {}
    notes = []
    for run in range(_NUM_RUNS):
        for model in parsed.models:
            for server in servers_of(model):
                if time.monotonic() + _START_S > deadline_s:
                    notes.append(f"{model}, {server.name}, run {run + 1}: no time was left")
                    continue
                notes += _measure(rounds, server, model, run, deadline_s)
    facts = {
        "command": f"`python -m laboratory.bench --models {' '.join(parsed.models)}`",
        "machine": f"{processor_name()}, {NUM_CORES} cores of {os.cpu_count()}",
    }
    for model in parsed.models:
        equal, both = num_equal(rounds, model)
        facts[f"{model}, texts equal to the peer's"] = f"{equal} of {both}"
    print(ratio_table(rounds))
    parsed.results.parent.mkdir(parents=True, exist_ok=True)
    parsed.results.write_text(markdown(rounds, facts, notes), encoding="utf-8")
    _note(f"written to {parsed.results}; `python -m docs.tables` updates the pages")


def _measure(
    rounds: dict[tuple[str, Server, WorkloadName], list[Round]],
    server: Server,
    model: str,
    run: int,
    deadline_s: float,
) -> list[str]:
    """Add the rounds of one server; return what is to be noted."""
    notes = []
    for workload, one in rounds_of(server, model, _FOLDER, run, deadline_s):
        _note(f"{model}, {server.name}, {workload}: {len(one.samples)} in {one.elapsed_s:.1f} s")
        if one.samples:
            rounds.setdefault((model, server, workload), []).append(one)
        if one.is_cut:
            notes.append(f"{model}, {server.name}, {workload}: the round was cut at the end")
    return notes


def _make_material(models: Sequence[str]) -> None:
    """Make what is missing, in a process that reads the bench's own store."""
    environment = os.environ | {
        "BENTOML_HOME": str(_FOLDER / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "laboratory.bench.material", str(_FOLDER), *models]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.bench", description=summary)
    add = parser.add_argument
    add("--minutes", type=float, default=14.0, metavar="N", help="default: %(default)s")
    add("--models", nargs="+", choices=MODELS, default=[RANDOM_MODEL], metavar="ID")
    results = ROOT / "laboratory" / "results" / "bench.md"
    add("--results", type=Path, default=results, metavar="FILE", help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
