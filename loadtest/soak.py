"""Ask a service for long, at 80 % of what it can do, with errors and clients that go, and say whether it leaks.

    python -m loadtest.soak [--minutes N] [--results FOLDER]

It starts a service of its own with the embedded models (exported before: make export), measures what it can do, then
samples what its processes take. A table goes to stdout, all samples into soak.json. Status 1: something grows, or
something failed that should not.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.flatness import Allowance, Trend, trend_of
from loadtest.markdown import shown, table
from loadtest.process_use import Use, use_of_family
from loadtest.servers import ROOT, Launch, free_port, running
from loadtest.soak_traffic import MAX_AT_ONCE, Traffic

LOAD = 0.8
_NUM_CLIENTS = 16
_WARM_UP = 1 / 4  # of the time
_CAPACITY_S = 10.0
_SAMPLES = 120
_EXPECTED = {"answer", "stream", "error", "gone"}
# The cache is small, so that it is full before the samples count.
SETTINGS = {"DIPTYCH_VISION_CACHE_MB": "8", "DIPTYCH_GRPC_PORT": "0"}
ALLOWANCES = {
    "memory_mb": Allowance(0.05, 12),
    "num_fds": Allowance(0, MAX_AT_ONCE),  # connections that are at work, or idle for some seconds more
    "num_threads": Allowance(0, 2),
}
_RESULTS = ROOT / "loadtest" / "results"


@dataclass(frozen=True, slots=True)
class Sample:
    """What all processes took at one time."""

    time_s: float
    uses: Mapping[str, Use]


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak has found."""

    rate_per_s: float
    outcomes: Mapping[str, int]
    samples: Sequence[Sample]  # after warm-up

    def trends(self) -> dict[tuple[str, str], Trend]:
        """Return the trend of each measure of each process that was there all the time."""
        names = [name for name in self.samples[0].uses if all(name in sample.uses for sample in self.samples)]
        return {
            (name, measure): trend_of([getattr(sample.uses[name], measure) for sample in self.samples])
            for name in names
            for measure in ALLOWANCES
        }

    def growing(self) -> dict[tuple[str, str], Trend]:
        """Return the trends that are not flat."""
        return {key: trend for key, trend in self.trends().items() if not ALLOWANCES[key[1]].covers(trend)}

    def unexpected(self) -> dict[str, int]:
        """Return the outcomes that should not have been."""
        return {outcome: count for outcome, count in self.outcomes.items() if outcome not in _EXPECTED}


async def soak(url: str, process_id: int, seconds: float) -> Soak:
    """Ask the service whose first process is `process_id`, in all for `seconds`."""
    warm_up = Traffic(url)
    await warm_up.closed_loop(_NUM_CLIENTS, _CAPACITY_S / 2)  # what is slow the first time
    rate_per_s = LOAD * await warm_up.closed_loop(_NUM_CLIENTS, _CAPACITY_S)
    traffic, samples = Traffic(url, seed=1), list[Sample]()
    sampling = asyncio.create_task(_sample(process_id, seconds / _SAMPLES, samples))
    start_s = time.monotonic()
    await traffic.open_loop(rate_per_s, seconds)
    sampling.cancel()
    counted = [sample for sample in samples if sample.time_s - start_s > seconds * _WARM_UP]
    return Soak(rate_per_s, dict(traffic.outcomes), counted)


async def _sample(process_id: int, every_s: float, samples: list[Sample]) -> None:
    while True:
        samples.append(Sample(time.monotonic(), await asyncio.to_thread(use_of_family, process_id)))
        await asyncio.sleep(every_s)


def report(found: Soak) -> str:
    """Return the trends as a table: the lowest of the first third after warm-up → that of the last."""
    trends = found.trends()
    names = dict.fromkeys(name for name, _ in trends)
    rows = [[name, *(_cell(trends[name, measure]) for measure in ALLOWANCES)] for name in names]
    header = ["process", "memory (PSS), MB", "file descriptors", "threads"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
    return f"{table(header, rows)}\n\n{found.rate_per_s:.1f} requests/s: {counts}"


def _cell(trend: Trend) -> str:
    return f"{shown(trend.first)} → {shown(trend.last)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print the table, write the samples."""
    parser = argparse.ArgumentParser("python -m loadtest.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20, metavar="N", help="default %(default)s")
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="default %(default)s")
    parsed = parser.parse_args(arguments)
    port = free_port()
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", {"DIPTYCH_PORT": str(port), **SETTINGS})
    with running(launch, ROOT / "build" / "soak.log") as process_id:
        found = asyncio.run(soak(launch.url, process_id, parsed.minutes * 60))
    print(report(found))
    parsed.results.mkdir(parents=True, exist_ok=True)
    (parsed.results / "soak.json").write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    if found.growing() or found.unexpected():
        sys.exit(f"not flat: {found.growing()}; unexpected: {found.unexpected()}")


if __name__ == "__main__":
    main()
