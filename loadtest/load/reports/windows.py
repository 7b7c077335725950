"""The numbers of an interval: the requests due in it, their outcomes, and the service's own
metrics.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import percentile
from loadtest.load.reports.samples import NOT_SENT, VERDICTS, Sample, Verdict
from loadtest.load.reports.service_metrics import Scrape, ServiceNumbers, service_numbers
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
    verdicts: Mapping[Verdict, int]
    statuses: Mapping[str, int]
    latency_ms: Percentiles | None  # of right answers, including late ones; None if there are none

    def share(self, verdict: Verdict) -> float:
        """Return the share of a verdict in all due requests."""
        return self.verdicts[verdict] / self.num_due if self.num_due else 0.0


@dataclass(frozen=True, slots=True)
class WindowNumbers:
    """Numbers of one window."""

    level: float
    start_s: float  # Unix time
    seconds: float
    all: Numbers
    by_api: Mapping[str, Numbers]
    by_model: Mapping[str, Mapping[str, Numbers]]  # then by task
    first_token_ms: Percentiles | None  # of streams, measured by their clients
    lag_ms: Percentiles | None  # of sent requests: the delay of this side
    service: ServiceNumbers

    @property
    def offered_per_s(self) -> float:
        """Due requests per second."""
        return self.all.num_due / self.seconds

    @property
    def answered_per_s(self) -> float:
        """Right answers per second, including late ones."""
        return self.all.statuses.get(OK, 0) / self.seconds

    @property
    def goodput_per_s(self) -> float:
        """Good answers per second."""
        return self.all.verdicts["good"] / self.seconds

    @property
    def step(self) -> Step:
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
            model: {
                task: numbers_of(few, slos_ms)
                for task, few in _by(some, lambda sample: sample.task).items()
            }
            for model, some in _by(inside, lambda sample: sample.model).items()
        },
        _percentiles(first_tokens),
        _percentiles([sample.lag_s for sample in inside if sample.status != NOT_SENT]),
        service_numbers(scrapes, window),
    )


def numbers_of(samples: Sequence[Sample], slos_ms: Mapping[str, Slo]) -> Numbers:
    verdicts = Counter(sample.verdict(slos_ms) for sample in samples)
    return Numbers(
        len(samples),
        {verdict: verdicts[verdict] for verdict in VERDICTS},
        dict(sorted(Counter(sample.status for sample in samples).items())),
        _percentiles([sample.latency_s for sample in samples if sample.status == OK]),
    )


def numbers_by_api(samples: Sequence[Sample], slos_ms: Mapping[str, Slo]) -> dict[str, Numbers]:
    return {
        api: numbers_of(some, slos_ms)
        for api, some in _by(samples, lambda sample: sample.api).items()
    }


def _by(samples: Iterable[Sample], key: Callable[[Sample], str]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return dict(sorted(groups.items()))


def _percentiles(values_s: Sequence[float]) -> Percentiles | None:
    if not values_s:
        return None
    return Percentiles(*(percentile(values_s, percent) * 1000 for percent in (50, 95, 99)))
