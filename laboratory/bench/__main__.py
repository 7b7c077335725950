"""Run the benchmark: `python -m laboratory.bench [--minutes N] [--models ID …]` (make bench).

Missing checkpoints, artifacts and images are made first and kept in build/bench. Every server runs
twice, in turns, so that a slow minute of the machine does not decide. The tables are written to
laboratory/results/bench.md: ours against the best peer, and every server. Rates are medians of the
rounds, percentiles are over all answers.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from laboratory.bench.load import MODELS, RANDOM_MODEL, SHORT_TOKENS, Round, Workload
from laboratory.bench.servers import OURS, OURS_DEFAULT, Server, rounds_of, servers_of
from loadtest.figures import percentile, processor_name, shown, table
from loadtest.processes import NUM_CORES, ROOT

Rounds = dict[tuple[str, Server, Workload], list[Round]]  # by model

_FOLDER = ROOT / "build" / "bench"
_NUM_RUNS = 2
_START_S = 20.0  # a server of real size starts
_RATES = ("requests/s", "tokens/s")  # of the other measures, less is better


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every server of every model and write the report."""
    parsed = _parse(arguments)
    # What is missing is made in a process that reads the bench's own store.
    environment = {"BENTOML_HOME": str(_FOLDER / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "laboratory.bench.material", str(_FOLDER), *parsed.models]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, stdout=sys.stderr, check=True)
    deadline_s = time.monotonic() + parsed.minutes * 60
    rounds: Rounds = {}
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


def _measure(rounds: Rounds, server: Server, model: str, run: int, deadline_s: float) -> list[str]:
    """Add the rounds of one server; return what is to be noted."""
    notes = []
    for workload, one in rounds_of(server, model, _FOLDER, run, deadline_s):
        _note(
            f"{model}, {server.name}, {workload.title}: {len(one.samples)} in {one.elapsed_s:.1f} s"
        )
        if one.samples:
            rounds.setdefault((model, server, workload), []).append(one)
        if one.is_cut:
            notes.append(f"{model}, {server.name}, {workload.title}: the round was cut at the end")
    return notes


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


def measures_of(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the measures of rounds with at least one answer.

    Those of short answers are NaN without any; the processor time is the server's, for a request.
    """
    rates = []
    token_rates = []
    latencies_ms = []
    short_ms = []
    for one in rounds:
        num_tokens = 0
        for sample in one.samples:
            num_tokens += sample.num_tokens
            latencies_ms.append(1000 * sample.latency_s)
            if sample.max_new_tokens == SHORT_TOKENS:
                short_ms.append(1000 * sample.latency_s)
        rates.append(len(one.samples) / one.elapsed_s)
        token_rates.append(num_tokens / one.elapsed_s)
    return {
        "requests/s": statistics.median(rates),
        "tokens/s": statistics.median(token_rates),
        "p50, ms": percentile(latencies_ms, 50),
        "p95, ms": percentile(latencies_ms, 95),
        "p95 of short ones, ms": percentile(short_ms, 95),
        "CPU, ms": 1000 * sum(one.cpu_s for one in rounds) / len(latencies_ms),
    }


def markdown(rounds: Rounds, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """Return the report; docs/tables.py copies its sections by their titles."""
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    sections = {
        "Ours ÷ best peer": ratio_table(rounds),
        "Every server": server_table(rounds),
        "Not run, or cut": "\n".join(f"- {note}" for note in notes) or "Nothing.",
    }
    bodies = "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())
    return f"# Bench\n\n{lines}\n{bodies}"


def ratio_table(rounds: Rounds) -> str:
    """Return a row for each measure of a workload that ours and a peer ran."""
    rows = []
    for (model, server, workload), server_rounds in rounds.items():
        if server.peer is not None:
            continue
        peers = {}
        for (other_model, peer, other_workload), peer_rounds in rounds.items():
            is_same = (other_model, other_workload) == (model, workload)
            if is_same and peer.peer is not None:
                peers[peer.name] = measures_of(peer_rounds)
        label = f"{model}, default precision" if server == OURS_DEFAULT else model
        ours = measures_of(server_rounds)
        for measure in workload.compared if peers else ():
            values = {name: measures[measure] for name, measures in peers.items()}
            best = (max if measure in _RATES else min)(values, key=values.__getitem__)
            cells = [shown(ours[measure]), shown(values[best]), best]
            ratio = f"{ours[measure] / values[best]:.2f}"
            rows.append([workload.title, label, measure, *cells, ratio])
    rows.sort(key=lambda row: row[0])
    header = ["workload", "model", "measure", "ours", "best peer", "peer", "ours ÷ peer"]
    return table(header, rows)


def server_table(rounds: Rounds) -> str:
    """Return all measures of every server under each workload."""
    header = ["model", "server", "setting", "workload", "rounds", "answers"]
    rows = []
    names = list[str]()
    for (model, server, workload), server_rounds in rounds.items():
        measures = measures_of(server_rounds)
        names = list(measures)
        num_answers = sum(len(one.samples) for one in server_rounds)
        row = [model, server.name, server.setting, workload.title, str(len(server_rounds))]
        rows.append([*row, str(num_answers), *map(shown, measures.values())])
    return table([*header, *names], rows)


def num_equal(rounds: Rounds, model: str) -> tuple[int, int]:
    """Return the numbers of peers' answers that equal ours, and of requests that both answered.

    Servers of one model get the same requests in the same round of a workload.
    """
    num_same = 0
    num_both = 0
    for (other, peer, workload), peer_rounds in rounds.items():
        our_rounds = rounds.get((model, OURS, workload), ())
        if other != model or peer.peer is None:
            continue
        for ours, theirs in zip(our_rounds, peer_rounds, strict=False):
            if ours.is_cut or theirs.is_cut:
                continue
            for one, same in zip(ours.samples, theirs.samples, strict=True):
                num_both += 1
                num_same += one.text == same.text
    return num_same, num_both


if __name__ == "__main__":
    main()
