"""The report of a run, load.md: the saturation point, and goodput by offered load.

Locust's own report has interfaces, tasks and the course of the run, Grafana the service's metrics.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import percent, percentile, shown, table
from loadtest.load.samples import NOT_SENT, VERDICTS, Sample, Verdict
from loadtest.load.senders.replies import OK
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import HELD_SHARE, Saturation, Step, saturation_of
from loadtest.load.traffic.traffic_mix import Slo


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds; NaN without values."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values_s: Sequence[float]) -> "Percentiles":
        return cls(*(percentile(values_s, percent) * 1000 for percent in (50, 95, 99)))


@dataclass(frozen=True, slots=True)
class WindowNumbers:
    """Numbers of the requests due in one window."""

    level: float
    seconds: float
    verdicts: Counter[Verdict]
    num_right: int  # including late ones
    latency_ms: Percentiles  # right answers only
    first_token_ms: Percentiles  # streams, measured by their clients
    lag_ms: Percentiles  # delay of this side, sent requests only

    @property
    def step(self) -> Step:
        return Step(self.level, self.verdicts.total(), self.verdicts["good"])

    def share(self, verdict: Verdict) -> float:
        """Return the share of a verdict in all due requests."""
        return self.verdicts[verdict] / max(1, self.verdicts.total())


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The numbers of a run."""

    facts: Mapping[str, str]
    unit: str  # unit of the levels
    is_stepped: bool  # to the saturation point
    windows: Sequence[WindowNumbers]

    @property
    def saturation(self) -> Saturation:
        return saturation_of([window.step for window in self.windows])

    @property
    def saturation_text(self) -> str:
        """A sentence about the saturation point."""
        claim = f"hold: {HELD_SHARE:.0%} or more of the due requests are answered within their SLO"
        if not self.is_stepped:
            num_held = sum(window.step.holds for window in self.windows)
            return f"{num_held} of {len(self.windows)} windows {claim}."
        found = self.saturation
        if found.held is None:
            lowest = min(window.level for window in self.windows)
            return f"No level held, the lowest was {lowest:.3g} {self.unit}."
        held = f"{found.held:.3g} {self.unit} {claim}"
        if found.not_held is None:
            return f"{held}; no higher level was tried."
        return f"{held}; {found.not_held:.3g} do not."


def window_numbers(
    window: Window, samples: Iterable[Sample], slos_ms: Mapping[str, Slo]
) -> WindowNumbers:
    """Return the numbers of the requests that were due in a window."""
    inside = [sample for sample in samples if window.contains(sample.due_s)]
    right_s = [sample.latency_s for sample in inside if sample.status == OK]
    first_tokens = [sample.first_token_s for sample in inside if sample.first_token_s is not None]
    lags_s = [sample.lag_s for sample in inside if sample.status != NOT_SENT]
    return WindowNumbers(
        window.level,
        window.seconds,
        Counter(sample.verdict(slos_ms) for sample in inside),
        len(right_s),
        Percentiles.of(right_s),
        Percentiles.of(first_tokens),
        Percentiles.of(lags_s),
    )


def markdown(report: LoadReport) -> str:
    """Return facts and tables; docs/tables.py copies them by their titles."""
    facts = "\n".join(f"- {name}: {value}" for name, value in report.facts.items())
    return (
        f"# Load\n\n{facts}\n"
        f"\n## Saturation\n\n{report.saturation_text}\n"
        f"\n## Offered and answered\n\n{_load_table(report)}\n"
    )


def _load_table(report: LoadReport) -> str:
    """Return a row for each level, in ascending order."""
    header = [report.unit, "offered/s", "answered/s", "goodput/s"]
    header += [verdict.replace("_", " ") for verdict in VERDICTS]
    header += ["p50 ms", "p95 ms", "p99 ms", "first token p50 / p95 ms", "sent late, p99 ms"]
    rows = []
    for window in sorted(report.windows, key=lambda window: window.level):
        counts = (window.verdicts.total(), window.num_right, window.verdicts["good"])
        latency_ms = window.latency_ms
        first_ms = window.first_token_ms
        row = [f"{window.level:.3g}"]
        row += [shown(count / window.seconds) for count in counts]
        row += [percent(window.share(verdict)) for verdict in VERDICTS]
        row += map(shown, (latency_ms.p50, latency_ms.p95, latency_ms.p99))
        row.append(f"{shown(first_ms.p50)} / {shown(first_ms.p95)}")
        row.append(shown(window.lag_ms.p99))
        rows.append(row)
    return table(header, rows)
