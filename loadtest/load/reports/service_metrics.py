"""The service's own metrics, from /metrics: queue depths, batch sizes, time to first token.

The texts are parsed after the run, so that parsing delays no request.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.parser import text_string_to_metric_families

from loadtest.load.traffic.plans import Window

_METRICS = ("diptych_queue_depth", "diptych_batch_size", "diptych_time_to_first_token_seconds")

KeyT = TypeVar("KeyT")


@dataclass(frozen=True, slots=True)
class Scrape:
    """The lines of `_METRICS` at one time."""

    time_s: float  # Unix time
    text: str


@dataclass(frozen=True, slots=True)
class ServiceNumbers:
    """Numbers of one window, by `MODEL STAGE`; empty or None without metrics."""

    queue_depth_mean: Mapping[str, float] = field(default_factory=dict)
    queue_depth_max: Mapping[str, float] = field(default_factory=dict)
    batch_size_mean: Mapping[str, float] = field(default_factory=dict)
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None


def scraped(get: Callable[[str], bytes], time_s: float) -> Scrape:
    """Read the service's metrics; `get` returns the body of a path."""
    lines = get("/metrics").decode().splitlines()
    return Scrape(time_s, "".join(f"{line}\n" for line in lines if line.startswith(_METRICS)))


def service_numbers(scrapes: Sequence[Scrape], window: Window) -> ServiceNumbers:
    """Return the numbers of a window; counters need two scrapes in it."""
    inside = [_read(scrape) for scrape in scrapes if window.contains(scrape.time_s)]
    if not inside:
        return ServiceNumbers()
    depths = defaultdict[str, list[float]](list)
    for sample in inside:
        for stage, depth in sample.depths.items():
            depths[stage].append(depth)
    first = inside[0]
    last = inside[-1]
    counts = _grown(first.batch_counts, last.batch_counts)
    sums = _grown(first.batch_sums, last.batch_sums)
    buckets = _grown(first.first_tokens, last.first_tokens)
    return ServiceNumbers(
        {stage: sum(values) / len(values) for stage, values in depths.items()},
        {stage: max(values) for stage, values in depths.items()},
        {stage: sums[stage] / count for stage, count in counts.items() if count > 0},
        _milliseconds(histogram_quantile(buckets, 0.5)),
        _milliseconds(histogram_quantile(buckets, 0.95)),
    )


def histogram_quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Return a quantile of cumulative counts by upper bound, interpolated within a bucket; None
    without counts.

    As in Prometheus' histogram_quantile, a quantile in the last bucket is that bucket's lower
    bound.
    """
    total = buckets.get(math.inf, 0.0)
    if not total:
        return None
    lower = 0.0
    below = 0.0
    for upper, count in sorted(buckets.items()):
        if count >= share * total:
            return (
                lower
                if math.isinf(upper)
                else lower + (upper - lower) * (share * total - below) / (count - below)
            )
        lower = upper
        below = count
    raise AssertionError("the last bucket contains all counts")


@dataclass(slots=True)
class _Read:
    depths: dict[str, float] = field(default_factory=dict)
    batch_counts: dict[str, float] = field(default_factory=dict)
    batch_sums: dict[str, float] = field(default_factory=dict)
    # of all models and tasks together
    first_tokens: dict[float, float] = field(default_factory=dict)


def _read(scrape: Scrape) -> _Read:
    read = _Read()
    for family in text_string_to_metric_families(scrape.text):
        for sample in family.samples:
            stage = f"{sample.labels.get('model')} {sample.labels.get('stage')}"
            match sample.name.removeprefix("diptych_"):
                case "queue_depth":
                    read.depths[stage] = sample.value
                case "batch_size_count":
                    read.batch_counts[stage] = sample.value
                case "batch_size_sum":
                    read.batch_sums[stage] = sample.value
                case "time_to_first_token_seconds_bucket":
                    upper = float(sample.labels["le"])
                    read.first_tokens[upper] = read.first_tokens.get(upper, 0.0) + sample.value
    return read


def _grown(first: Mapping[KeyT, float], last: Mapping[KeyT, float]) -> dict[KeyT, float]:
    return {key: value - first.get(key, 0.0) for key, value in last.items()}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
