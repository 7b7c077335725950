"""The numbers of a stretch of time: what was due in it, what became of that, and what the service says of itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.load.plans import Window
from loadtest.load.replies import OK
from loadtest.load.samples import VERDICTS, Sample, Verdict
from loadtest.load.saturation import Step
from loadtest.load.service_metrics import Scrape, ServiceNumbers, service_numbers
from loadtest.load.traffic_mix import Slo
from loadtest.measures import percentile


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of some requests."""

    num_due: int
    verdicts: Mapping[Verdict, int]
    statuses: Mapping[str, int]
    latency_ms: Percentiles | None  # of right answers, late ones too; None where there was none

    def share(self, verdict: Verdict) -> float:
        """Return the share that a verdict has of all that was due."""
        return self.verdicts[verdict] / self.num_due if self.num_due else 0.0


@dataclass(frozen=True, slots=True)
class WindowNumbers:
    """Of one window."""

    level: float
    start_s: float  # Unix time
    seconds: float
    all: Numbers
    by_api: Mapping[str, Numbers]
    by_model: Mapping[str, Mapping[str, Numbers]]  # then by task
    first_token_ms: Percentiles | None  # of streams, as their clients saw it
    lag_ms: Percentiles | None  # of what was sent: how late this side was itself
    service: ServiceNumbers

    @property
    def offered_per_s(self) -> float:
        """Requests that were due, a second."""
        return self.all.num_due / self.seconds

    @property
    def answered_per_s(self) -> float:
        """Right answers a second, late ones too."""
        return self.all.statuses.get(OK, 0) / self.seconds

    @property
    def goodput_per_s(self) -> float:
        """Good answers a second."""
        return self.all.verdicts["good"] / self.seconds

    @property
    def step(self) -> Step:
        """Return it as the search for the saturation point sees it."""
        return Step(self.level, self.all.num_due, self.all.verdicts["good"])


def window_numbers(
    window: Window, samples: Iterable[Sample], scrapes: Sequence[Scrape], slos_ms: Mapping[str, Slo]
) -> WindowNumbers:
    """Return the numbers of the requests that were due in a window."""
    inside = [sample for sample in samples if window.contains(sample.due_s)]
    first_tokens = [sample.first_token_s for sample in inside if sample.first_token_s is not None]
    return WindowNumbers(
        window.level,
        window.start_s,
        window.seconds,
        numbers_of(inside, slos_ms),
        numbers_by_api(inside, slos_ms),
        {
            model: {task: numbers_of(few, slos_ms) for task, few in _by(some, lambda sample: sample.task).items()}
            for model, some in _by(inside, lambda sample: sample.model).items()
        },
        _percentiles(first_tokens),
        _percentiles([sample.lag_s for sample in inside if sample.status != "not_sent"]),
        service_numbers(scrapes, window),
    )


def numbers_of(samples: Sequence[Sample], slos_ms: Mapping[str, Slo]) -> Numbers:
    """Return the numbers of some requests."""
    verdicts = Counter(sample.verdict(slos_ms) for sample in samples)
    return Numbers(
        len(samples),
        {verdict: verdicts[verdict] for verdict in VERDICTS},
        dict(sorted(Counter(sample.status for sample in samples).items())),
        _percentiles([sample.latency_s for sample in samples if sample.status == OK]),
    )


def numbers_by_api(samples: Sequence[Sample], slos_ms: Mapping[str, Slo]) -> dict[str, Numbers]:
    """Return the numbers of each interface."""
    return {api: numbers_of(some, slos_ms) for api, some in _by(samples, lambda sample: sample.api).items()}


def _by(samples: Iterable[Sample], key: Callable[[Sample], str]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return dict(sorted(groups.items()))


def _percentiles(values_s: Sequence[float]) -> Percentiles | None:
    if not values_s:
        return None
    return Percentiles(*(percentile(values_s, percent) * 1000 for percent in (50, 95, 99)))
