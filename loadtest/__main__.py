"""Run the benchmark: `python -m loadtest [--minutes N] [--quick] [--resume]` (make bench).

Missing checkpoints, artifacts and images are made first by `python -m export.bench`, within the same time, and kept in
build/bench.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.bench import Bench
from loadtest.bench.limits import measure_steps, shares_of, steps_bytes
from loadtest.bench.machine import MachineRates
from loadtest.bench.material import ModelMaterial, read_material
from loadtest.bench.operations import count_operations
from loadtest.bench.report import markdown, write_plot
from loadtest.bench.results import Run, as_json, is_ours
from loadtest.figures import processor_name
from loadtest.processes import NUM_CORES, ROOT

_FOLDER = ROOT / "build" / "bench"
_RESULTS = ROOT / "loadtest" / "results"


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of a run."""

    minutes: float
    is_quick: bool
    is_resumed: bool
    scales: tuple[str, ...]
    results: Path

    @property
    def command(self) -> str:
        """The command, for the report."""
        flags = ["--quick"] * self.is_quick + ["--resume"] * self.is_resumed
        return " ".join([f"python -m loadtest --minutes {self.minutes:g}", *flags, "--scales", *self.scales])


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    deadline_s = time.monotonic() + options.minutes * 60
    _make_material(options.scales)
    models = [model for model in read_material(_FOLDER) if model.scale in options.scales]
    run = _run(models, options, deadline_s)
    print(markdown(run))
    _write(run, options.results)


def _run(models: Sequence[ModelMaterial], options: Options, deadline_s: float) -> Run:
    """Measure the machine, then every server."""
    operations = {model.id: count_operations(model.checkpoint) for model in models}
    rates = _machine_rates(sorted({num_bytes for one in operations.values() for num_bytes in steps_bytes(one)}))
    steps = [step for model in models if model.is_endless for step in measure_steps(model.id, _FOLDER)]
    bench = Bench(models, _FOLDER, deadline_s, options.is_quick)
    if not options.is_resumed:
        bench.clear()
    measurements = []
    for each in bench.run():
        _note(f"{each.model}, {each.server.name}: done, {(deadline_s - time.monotonic()) / 60:.1f} minutes are left")
        measurements.append(each)
    ours = filter(is_ours, measurements)
    shares = [share for each in ours for share in shares_of(each, operations[each.model], rates)]
    return Run(models, measurements, _facts(options), rates, shares, steps, bench.skipped)


def _make_material(scales: Sequence[str]) -> None:
    """Make what is missing; the output goes to stderr, like the progress of the run."""
    environment = os.environ | {"BENTOML_HOME": str(_FOLDER / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "export.bench", str(_FOLDER), "--scales", *scales]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)


def _machine_rates(bytes_of_steps: Sequence[int]) -> list[MachineRates]:
    """Measure in a process of its own, so that its threads and memory are released before a server starts."""
    command = [sys.executable, "-m", "loadtest.bench.machine", "--step-bytes", *map(str, bytes_of_steps)]
    measured = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [MachineRates(**rates) for rates in json.loads(measured)]


def _facts(options: Options) -> dict[str, str]:
    load = os.getloadavg()[0]
    return {
        "command": f"`{options.command}`",
        "machine": f"{processor_name()}, {NUM_CORES} cores of {os.cpu_count()}, load {load:.1f} at the end",
        "percentiles": "over all answers of a workload; rates are medians of its rounds",
        "CPU ms": "processor time of all the server's processes for a request, mean",
    }


def _write(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(run), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(as_json(run), indent=1) + "\n", encoding="utf-8")
    write_plot(run, folder / "bench.png")
    _note(f"written to {folder}: bench.md, bench.json, bench.png")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser("python -m loadtest", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=25, metavar="N", help="maximum time; default %(default)s")
    parser.add_argument("--quick", action="store_true", help="the embedded checkpoints only, one short round")
    parser.add_argument("--resume", action="store_true", help="keep the finished servers of an earlier run")
    parser.add_argument("--scales", nargs="+", choices=("embedded", "base"), default=["embedded", "base"])
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="default %(default)s")
    parsed = parser.parse_args(arguments)
    scales = ("embedded",) if parsed.quick else tuple(parsed.scales)
    return Options(parsed.minutes, parsed.quick, parsed.resume, scales, parsed.results)


if __name__ == "__main__":
    main()
