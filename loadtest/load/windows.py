"""The numbers of an interval: the requests due in it and their outcomes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import percentile
from loadtest.load.samples import NOT_SENT, Sample, Verdict
from loadtest.load.senders.replies import OK
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import Step
from loadtest.load.traffic.traffic_mix import Slo


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of some requests."""

    num_due: int
    num_right: int  # including late ones
    verdicts: Counter[Verdict]
    latency_ms: Percentiles | None  # right answers only

    def share(self, verdict: Verdict) -> float:
        """Return the share of a verdict in all due requests."""
        return self.verdicts[verdict] / self.num_due if self.num_due else 0.0


@dataclass(frozen=True, slots=True)
class WindowNumbers:
    """Numbers of one window."""

    level: float
    seconds: float
    all: Numbers
    by_model: Mapping[str, Mapping[str, Numbers]]  # then by task
    first_token_ms: Percentiles | None  # streams, measured by their clients
    lag_ms: Percentiles | None  # delay of this side, sent requests only

    @property
    def offered_per_s(self) -> float:
        """Due requests per second."""
        return self.all.num_due / self.seconds

    @property
    def answered_per_s(self) -> float:
        """Right answers per second, including late ones."""
        return self.all.num_right / self.seconds

    @property
    def goodput_per_s(self) -> float:
        """Good answers per second."""
        return self.all.verdicts["good"] / self.seconds

    @property
    def step(self) -> Step:
        return Step(self.level, self.all.num_due, self.all.verdicts["good"])


def window_numbers(
    window: Window, samples: Iterable[Sample], slos_ms: Mapping[str, Slo]
) -> WindowNumbers:
    """Return the numbers of the requests that were due in a window."""
    inside = [sample for sample in samples if window.contains(sample.due_s)]
    first_tokens = [sample.first_token_s for sample in inside if sample.first_token_s is not None]
    by_model: dict[str, dict[str, Numbers]] = {}
    for model, of_model in _by(inside, lambda sample: sample.model).items():
        by_task = _by(of_model, lambda sample: sample.task)
        by_model[model] = {task: numbers_of(some, slos_ms) for task, some in by_task.items()}
    return WindowNumbers(
        window.level,
        window.seconds,
        numbers_of(inside, slos_ms),
        by_model,
        _percentiles(first_tokens),
        _percentiles([sample.lag_s for sample in inside if sample.status != NOT_SENT]),
    )


def numbers_of(samples: Sequence[Sample], slos_ms: Mapping[str, Slo]) -> Numbers:
    right_s = [sample.latency_s for sample in samples if sample.status == OK]
    verdicts = Counter(sample.verdict(slos_ms) for sample in samples)
    return Numbers(len(samples), len(right_s), verdicts, _percentiles(right_s))


def _by(samples: Iterable[Sample], key: Callable[[Sample], str]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return dict(sorted(groups.items()))


def _percentiles(values_s: Sequence[float]) -> Percentiles | None:
    if not values_s:
        return None
    return Percentiles(*(percentile(values_s, percent) * 1000 for percent in (50, 95, 99)))
