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
    num_requests: int  # all rounds together
    num_answered: int
    requests_per_s: float  # median of the rounds
    tokens_per_s: float  # median of the rounds
    cpu_s_per_request: float  # mean, server only
    p50_s: float
    p95_s: float
    p99_s: float
    short_p95_s: float  # answers of `SHORT_TOKENS`; NaN without any


@dataclass(frozen=True, slots=True)
class Profile:
    """Mean milliseconds of our service's requests by stage; they add up to `latency_ms`."""

    num_requests: int
    latency_ms: float
    stages_ms: dict[str, float]


def numbers_of(rounds: Sequence[Round]) -> Numbers:
    """Return the measures of rounds with at least one answer."""
    samples = list[Sample]()
    tokens_per_s = []
    for one in rounds:
        samples += one.samples
        num_tokens = sum(sample.answer.generated_tokens for sample in one.samples)
        tokens_per_s.append(num_tokens / one.elapsed_s)
    latencies = [sample.latency_s for sample in samples]
    short = [sample.latency_s for sample in samples if sample.max_new_tokens == SHORT_TOKENS]
    return Numbers(
        num_rounds=len(rounds),
        num_requests=sum(one.num_requests for one in rounds),
        num_answered=len(samples),
        requests_per_s=statistics.median(len(one.samples) / one.elapsed_s for one in rounds),
        tokens_per_s=statistics.median(tokens_per_s),
        cpu_s_per_request=sum(one.cpu_s for one in rounds) / len(samples),
        p50_s=percentile(latencies, 50),
        p95_s=percentile(latencies, 95),
        p99_s=percentile(latencies, 99),
        short_p95_s=percentile(short, 95),
    )


def profile_of(samples: Sequence[Sample]) -> Profile:
    """Return the profile of at least one answer of our service."""
    latency_ms = statistics.fmean(sample.latency_s for sample in samples) * 1000
    timings = [sample.answer.timings_ms for sample in samples]
    means = {}
    for name in (*STAGES, "total"):
        means[name] = statistics.fmean(each[name] for each in timings)
    total_ms = means.pop("total")
    others = {"between": total_ms - sum(means.values()), "http": latency_ms - total_ms}
    return Profile(len(samples), latency_ms, means | others)


def num_equal(ours: Sequence[Round], theirs: Sequence[Round]) -> tuple[int, int]:
    """Return the number of equal texts of both servers, and of requests that both answered."""
    num_same = 0
    num_both = 0
    for one, other in zip(ours, theirs, strict=False):
        if one.is_cut or other.is_cut:
            continue
        num_both += len(one.samples)
        for mine, yours in zip(one.samples, other.samples, strict=True):
            num_same += mine.answer.text == yours.answer.text
    return num_same, num_both


def num_other_length(rounds: Sequence[Round]) -> int:
    """Return the number of answers whose length is not the requested one."""
    num_other = 0
    for one in rounds:
        for sample in one.samples:
            num_other += sample.answer.generated_tokens != sample.max_new_tokens
    return num_other
