"""Measures of one server under one workload: medians over rounds, percentiles over all answers,
means of stages.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from laboratory.bench.rounds.client import Round, Sample
from laboratory.bench.rounds.workloads import SHORT_TOKENS
from loadtest.figures import percentile

STAGES = ("preprocess", "queue", "encode", "prefill", "decode", "postprocess")
# between: hops between the stages' processes, threads and sockets; http: before and after them,
# HTTP and the form.
COLUMNS = (*STAGES, "between", "http")


@dataclass(frozen=True, slots=True)
class Numbers:
    """Measures of a server under a workload."""

    num_rounds: int
    num_requests: int  # of all rounds
    num_answered: int
    requests_per_s: float  # median of the rounds
    tokens_per_s: float  # median of the rounds
    cpu_s_per_request: float  # of the server, mean
    p50_s: float
    p95_s: float
    p99_s: float
    short_p95_s: float  # of answers of `SHORT_TOKENS`; NaN if there are none


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean milliseconds of our service's requests by stage; they add up to `latency_ms`."""

    num_requests: int
    latency_ms: float
    stages_ms: dict[str, float]


def numbers_of(rounds: Sequence[Round]) -> Numbers:
    """Return the measures of rounds with at least one answer."""
    samples = [sample for one in rounds for sample in one.samples]
    latencies = [sample.latency_s for sample in samples]
    return Numbers(
        num_rounds=len(rounds),
        num_requests=sum(one.num_requests for one in rounds),
        num_answered=len(samples),
        requests_per_s=statistics.median(len(one.samples) / one.elapsed_s for one in rounds),
        tokens_per_s=statistics.median(
            sum(sample.answer.generated_tokens for sample in one.samples) / one.elapsed_s
            for one in rounds
        ),
        cpu_s_per_request=sum(one.cpu_s for one in rounds) / len(samples),
        p50_s=percentile(latencies, 50),
        p95_s=percentile(latencies, 95),
        p99_s=percentile(latencies, 99),
        short_p95_s=percentile(
            [s.latency_s for s in samples if s.max_new_tokens == SHORT_TOKENS], 95
        ),
    )


def profile_of(samples: Sequence[Sample]) -> Profile:
    """Return the profile of at least one answer of our service."""
    rows = [_stages_ms(sample) for sample in samples]
    means = {name: statistics.fmean(row[name] for row in rows) for name in COLUMNS}
    return Profile(
        len(rows), statistics.fmean(sample.latency_s for sample in samples) * 1000, means
    )


def _stages_ms(sample: Sample) -> dict[str, float]:
    timings = sample.answer.timings_ms
    stages = {name: timings[name] for name in STAGES}
    return stages | {
        "between": timings["total"] - sum(stages.values()),
        "http": sample.latency_s * 1000 - timings["total"],
    }


def num_equal(ours: Sequence[Round], theirs: Sequence[Round]) -> tuple[int, int]:
    """Return the number of requests with the same text from both servers, and the number that both
    answered.
    """
    pairs = [
        (a.answer.text, b.answer.text)
        for one, other in zip(ours, theirs, strict=False)
        if not one.is_cut and not other.is_cut
        for a, b in zip(one.samples, other.samples, strict=True)
    ]
    return sum(a == b for a, b in pairs), len(pairs)


def num_other_length(rounds: Sequence[Round]) -> int:
    """Return the number of answers whose length is not the requested one."""
    samples = (sample for one in rounds for sample in one.samples)
    return sum(sample.answer.generated_tokens != sample.max_new_tokens for sample in samples)
