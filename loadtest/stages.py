"""Where the time of our service's requests goes: means by stage, from `timings_ms` and the client's clock."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.client import Sample

STAGES = ("preprocess", "queue", "encode", "prefill", "decode", "postprocess")
# Between the stages: what processes, threads and sockets add. Before and after: HTTP, and reading the form.
COLUMNS = (*STAGES, "between", "http")


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean milliseconds of a request by stage; they add up to `latency_ms`."""

    num_requests: int
    latency_ms: float
    stages_ms: dict[str, float]


def profile_of(samples: Sequence[Sample]) -> Profile:
    """Return the profile of at least one answer of our service."""
    rows = [_stages_ms(sample) for sample in samples]
    means = {name: statistics.fmean(row[name] for row in rows) for name in COLUMNS}
    return Profile(len(rows), statistics.fmean(sample.latency_s for sample in samples) * 1000, means)


def _stages_ms(sample: Sample) -> dict[str, float]:
    """Return each stage of one request, and what is between and around them."""
    timings = sample.answer.timings_ms
    stages = {name: timings[name] for name in STAGES}
    return stages | {
        "between": timings["total"] - sum(stages.values()),
        "http": sample.latency_s * 1000 - timings["total"],
    }
