"""Soak test: mixed load at 80 % of the capacity, with errors and disconnecting clients; fails if
resources grow.

    python -m loadtest.soak [--minutes N] [--results FOLDER]

It starts a service with the embedded models (exported before: make export), measures its capacity,
then samples the resources of its processes. The table is printed, all samples are written to
soak.json. Exit status 1: a resource grows, or a request failed unexpectedly.

A resource is flat if its floor is: work in progress raises single samples, a leak raises the
lowest. The samples are divided into blocks. Neither the least-squares line through the blocks'
minima nor the difference between the minimum of the last and that of the first third may exceed the
allowance.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.figures import shown, table
from loadtest.processes import ROOT, Launch, ProcessUse, free_port, running, use_by_name
from loadtest.soak_traffic import EXPECTED, MAX_IN_FLIGHT, Traffic

_LOAD = 0.8  # share of the capacity
_NUM_CLIENTS = 16
_WARM_UP = 1 / 4  # share of the time
_CAPACITY_S = 10.0
_NUM_SAMPLES = 120
_NUM_BLOCKS = 9
# The cache is full after the warm-up.
SETTINGS = {"DIPTYCH_VISION_CACHE_MB": "8", "DIPTYCH_GRPC_PORT": "0"}
_RESULTS = ROOT / "loadtest" / "results"


@dataclass(frozen=True, slots=True)
class Trend:
    """One resource, sampled at equal intervals after the warm-up."""

    first: float  # minimum of the first third
    last: float  # minimum of the last third
    growth: float  # least-squares growth of the floor, first block to last


@dataclass(frozen=True, slots=True)
class Allowance:
    """Growth that counts as flat: `share` of the first third, or `least`, whichever is more."""

    share: float
    least: float

    def covers(self, trend: Trend) -> bool:
        allowed = max(self.share * trend.first, self.least)
        return trend.last - trend.first <= allowed and trend.growth <= allowed


ALLOWANCES = {  # keyed by the fields of `ProcessUse`
    "memory_mb": Allowance(0.05, 12),
    "num_fds": Allowance(0, MAX_IN_FLIGHT),  # connections in use, or idle for some seconds
    "num_threads": Allowance(0, 2),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of all processes at one time."""

    time_s: float
    uses: Mapping[str, ProcessUse]


@dataclass(frozen=True, slots=True)
class Soak:
    """Result of a soak test."""

    rate_per_s: float
    outcomes: Mapping[str, int]
    samples: Sequence[Sample]  # after the warm-up

    def trends(self) -> dict[tuple[str, str], Trend]:
        """Return the trend of each resource of each process that is in all samples."""
        trends = {}
        for name in self.samples[0].uses:
            uses = [sample.uses[name] for sample in self.samples if name in sample.uses]
            if len(uses) == len(self.samples):
                for resource in ALLOWANCES:
                    trends[name, resource] = trend_of([getattr(use, resource) for use in uses])
        return trends

    def growing(self) -> dict[tuple[str, str], Trend]:
        """Return the trends that are not flat."""
        return {
            key: trend
            for key, trend in self.trends().items()
            if not ALLOWANCES[key[1]].covers(trend)
        }

    def unexpected(self) -> dict[str, int]:
        """Return the outcomes that count as failures."""
        return {
            outcome: count for outcome, count in self.outcomes.items() if outcome not in EXPECTED
        }


def trend_of(values: Sequence[float]) -> Trend:
    """Return the trend; raise `ValueError` for fewer values than blocks."""
    if len(values) < _NUM_BLOCKS:
        raise ValueError(f"a trend needs at least {_NUM_BLOCKS} samples, not {len(values)}")
    size = len(values) // _NUM_BLOCKS
    floors = [min(values[-(block + 1) * size :][:size]) for block in reversed(range(_NUM_BLOCKS))]
    third = _NUM_BLOCKS // 3
    growth = statistics.linear_regression(range(_NUM_BLOCKS), floors).slope * (_NUM_BLOCKS - 1)
    return Trend(min(floors[:third]), min(floors[-third:]), growth)


async def soak(url: str, process_id: int, seconds: float) -> Soak:
    """Load the service, whose supervisor is `process_id`, for `seconds`."""
    warm_up = Traffic(url)
    await warm_up.closed_loop(_NUM_CLIENTS, _CAPACITY_S / 2)  # first-time costs
    rate_per_s = _LOAD * await warm_up.closed_loop(_NUM_CLIENTS, _CAPACITY_S)
    traffic = Traffic(url, seed=1)
    samples = list[Sample]()

    async def sample() -> None:
        while True:
            uses = await asyncio.to_thread(use_by_name, process_id)
            samples.append(Sample(time.monotonic(), uses))
            await asyncio.sleep(seconds / _NUM_SAMPLES)

    sampling = asyncio.create_task(sample())
    start_s = time.monotonic()
    await traffic.open_loop(rate_per_s, seconds)
    sampling.cancel()
    counted = [sample for sample in samples if sample.time_s - start_s > seconds * _WARM_UP]
    return Soak(rate_per_s, dict(traffic.outcomes), counted)


def report(found: Soak) -> str:
    """Return the trends as a table: minimum of the first third → that of the last."""
    trends = found.trends()
    rows = dict[str, list[str]]()
    for (name, _), trend in trends.items():
        cells = rows.setdefault(name, [name])
        cells.append(f"{shown(trend.first)} → {shown(trend.last)}")
    header = ["process", "memory (PSS), MB", "file descriptors", "threads"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
    return f"{table(header, rows.values())}\n\n{found.rate_per_s:.1f} requests/s: {counts}"


def main(arguments: Sequence[str] | None = None) -> None:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m loadtest.soak", description=summary)
    add = parser.add_argument
    add("--minutes", type=float, default=20, metavar="N", help="default %(default)s")
    add("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="default %(default)s")
    parsed = parser.parse_args(arguments)
    port = free_port()
    launch = Launch(
        (sys.executable, "-m", "service"), port, "/readyz", {"DIPTYCH_PORT": str(port), **SETTINGS}
    )
    with running(launch, ROOT / "build" / "soak.log") as process_id:
        found = asyncio.run(soak(launch.url, process_id, parsed.minutes * 60))
    print(report(found))
    parsed.results.mkdir(parents=True, exist_ok=True)
    (parsed.results / "soak.json").write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    if found.growing() or found.unexpected():
        sys.exit(f"not flat: {found.growing()}; unexpected outcomes: {found.unexpected()}")


if __name__ == "__main__":
    main()
