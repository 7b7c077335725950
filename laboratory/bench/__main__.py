"""Run the benchmark: `python -m laboratory.bench [--minutes N]` (make bench).

Missing checkpoints, artifacts and images are made first by `python -m laboratory.bench.material`,
within the same time, and kept in build/bench. A whole run is appended to
laboratory/results/history.jsonl. `--short`, for the end of the checks, compares the embedded models
with one peer, and the ratios with those in the history; it reads the artifacts of `make export`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from laboratory.bench.bench import Bench
from laboratory.bench.history import HistoryRow, append_row, ratios_of, read_history
from laboratory.bench.material.records import ModelMaterial, read_material
from laboratory.bench.measures import numbers_of
from laboratory.bench.report import markdown, ratio_table, write_plot
from laboratory.bench.results import Run, as_json
from laboratory.bench.short import run_short, short_report
from loadtest.figures import processor_name, shown
from loadtest.processes import NUM_CORES, ROOT

_FOLDER = ROOT / "build" / "bench"
_SHORT_FOLDER = ROOT / "build" / "bench-short"
_RESULTS = ROOT / "laboratory" / "results"
_HISTORY = _RESULTS / "history.jsonl"
_SHORT_MINUTES = 1.5


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    start_s = time.monotonic()
    deadline_s = start_s + options.minutes * 60
    if options.short:
        _make_material(_SHORT_FOLDER, "--short")
        for short in run_short(read_material(_SHORT_FOLDER), _SHORT_FOLDER, deadline_s):
            print(short_report(short.run, read_history(_HISTORY), short.others_cores), flush=True)
        _note(f"short bench: {time.monotonic() - start_s:.0f} s on {_machine()}")
        return
    _make_material(_FOLDER, "--scales", *options.scales)
    models = [model for model in read_material(_FOLDER) if model.scale in options.scales]
    # before the results are written; `-dirty` if files of the commit are changed
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    described = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    commit = described.stdout.strip() or "unknown"
    command = f"--minutes {options.minutes:g} --scales {' '.join(options.scales)}"
    run = _run(models, f"python -m laboratory.bench {command}", deadline_s)
    print(ratio_table(run))
    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(run), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(as_json(run), indent=1) + "\n", encoding="utf-8")
    write_plot(run, folder / "bench.png")
    _note(f"written to {folder}: bench.md, bench.json, bench.png")
    if folder == _RESULTS:
        today = datetime.now(UTC).date().isoformat()
        append_row(HistoryRow(commit, today, _machine(), ratios_of(as_json(run))), _HISTORY)
        _note(f"appended to {_HISTORY}; `python -m docs.tables` updates the pages")


def _run(models: Sequence[ModelMaterial], command: str, deadline_s: float) -> Run:
    """Measure every server."""
    bench = Bench(models, _FOLDER, deadline_s)
    measurements = []
    for each in bench.run():
        measurements.append(each)
        left_minutes = (deadline_s - time.monotonic()) / 60
        reached = [
            f"{load} {shown(numbers_of(rounds).requests_per_s)}"
            for load, rounds in each.rounds.items()
        ]
        _note(
            f"{each.model}, {each.server.name}: {each.start_s:.1f} s to start, requests/s:"
            f" {', '.join(reached)}; {left_minutes:.1f} minutes are left"
        )
    facts = {
        "command": f"`{command}`",
        "machine": f"{_machine()}, load {os.getloadavg()[0]:.1f} at the end",
        "percentiles": "over all answers of a workload; rates are medians of its rounds",
        "CPU ms": "processor time of all the server's processes for a request, mean",
    }
    return Run(models, measurements, facts, bench.skipped)


def _make_material(folder: Path, *options: str) -> None:
    """Make what is missing; the output goes to stderr, like the progress of the run."""
    environment = os.environ | {
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "laboratory.bench.material", str(folder), *options]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)


def _machine() -> str:
    return f"{processor_name()}, {NUM_CORES} cores of {os.cpu_count()}"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.bench", description=summary)
    add = parser.add_argument
    times = f"maximum time; default 25, of the short run {_SHORT_MINUTES:g}"
    add("--minutes", type=float, metavar="N", help=times)
    add("--short", action="store_true", help="one peer, and what got worse since the last runs")
    scales = ["embedded", "base"]
    add("--scales", nargs="+", choices=scales, default=scales)
    add("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="default %(default)s")
    parsed = parser.parse_args(arguments)
    parsed.minutes = parsed.minutes or (_SHORT_MINUTES if parsed.short else 25)
    return parsed


if __name__ == "__main__":
    main()
