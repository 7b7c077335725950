"""Numbers of the rounds of one server under one workload: medians over rounds, percentiles over all answers."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.client import Round, Sample
from loadtest.workloads import SHORT_TOKENS


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a server did under a workload."""

    num_rounds: int
    num_requests: int  # of all rounds
    num_answered: int
    requests_per_s: float  # median of the rounds
    tokens_per_s: float  # median of the rounds
    cpu_s_per_request: float  # of the server, mean
    p50_s: float
    p95_s: float
    p99_s: float
    short_p95_s: float  # of the answers of `SHORT_TOKENS`; NaN where there are none


def numbers_of(rounds: Sequence[Round]) -> Numbers:
    """Return the numbers of rounds in which at least one request was answered."""
    samples = [sample for one in rounds for sample in one.samples]
    latencies = [sample.latency_s for sample in samples]
    return Numbers(
        num_rounds=len(rounds),
        num_requests=sum(one.num_requests for one in rounds),
        num_answered=len(samples),
        requests_per_s=statistics.median(len(one.samples) / one.elapsed_s for one in rounds),
        tokens_per_s=statistics.median(num_tokens(one.samples) / one.elapsed_s for one in rounds),
        cpu_s_per_request=sum(one.cpu_s for one in rounds) / len(samples),
        p50_s=percentile(latencies, 50),
        p95_s=percentile(latencies, 95),
        p99_s=percentile(latencies, 99),
        short_p95_s=percentile([s.latency_s for s in samples if s.max_new_tokens == SHORT_TOKENS], 95),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of all do not exceed (nearest rank); NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def num_tokens(samples: Sequence[Sample]) -> int:
    """Return how many tokens were generated."""
    return sum(sample.answer.generated_tokens for sample in samples)


def num_equal(ours: Sequence[Round], theirs: Sequence[Round]) -> tuple[int, int]:
    """Return how many answers of the same requests have the same text, and how many both have answered."""
    pairs = [
        (a.answer.text, b.answer.text)
        for one, other in zip(ours, theirs, strict=False)
        if not one.is_cut and not other.is_cut
        for a, b in zip(one.samples, other.samples, strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def num_short(rounds: Sequence[Round]) -> int:
    """Return how many answers are not as long as they were asked to be."""
    samples = (sample for one in rounds for sample in one.samples)
    return sum(sample.answer.generated_tokens != sample.max_new_tokens for sample in samples)
