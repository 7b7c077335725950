"""The report of a run, load.md: the saturation point, goodput by offered load, and the SLO of each
task.

Locust's own report has the interfaces and the course of the run, Grafana the service's metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtest.figures import percent, shown, table
from loadtest.load.samples import VERDICTS
from loadtest.load.traffic.saturation import HELD_SHARE, Saturation, saturation_of
from loadtest.load.traffic.traffic_mix import Slo
from loadtest.load.windows import Percentiles, WindowNumbers


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The numbers of a run."""

    facts: Mapping[str, str]
    unit: str  # unit of the levels
    slos_ms: Mapping[str, Slo]
    windows: Sequence[WindowNumbers]

    @property
    def saturation(self) -> Saturation:
        return saturation_of([window.step for window in self.windows])

    @property
    def held(self) -> WindowNumbers | None:
        """The window with the highest level that holds."""
        held = self.saturation.held
        return next(
            (window for window in self.windows if window.level == held and window.step.holds), None
        )


def markdown(report: LoadReport) -> str:
    """Return facts and tables; docs/tables.py copies them by their titles."""
    facts = "\n".join(f"- {name}: {value}" for name, value in report.facts.items())
    return (
        f"# Load\n\n{facts}\n"
        f"\n## Saturation\n\n{_saturation_text(report)}\n"
        f"\n## Offered and answered\n\n{_load_table(report)}\n"
        f"\n## Tasks\n\n{_task_table(report)}\n"
    )


def _saturation_text(report: LoadReport) -> str:
    """Return a sentence about the saturation point."""
    found = report.saturation
    unit = report.unit
    steps = [window.step for window in report.windows]
    levels = {step.level for step in steps}
    if len(levels) == 1:
        num_held = sum(step.holds for step in steps)
        return f"{num_held} of {len(steps)} windows at {steps[0].level:.3g} {unit} hold."
    if found.held is None:
        return f"No level held, the lowest was {min(levels):.3g} {unit}."
    held = (
        f"{found.held:.3g} {unit} hold: {HELD_SHARE:.0%} or more of the due requests are answered"
        " within their SLO"
    )
    if found.not_held is None:
        return f"{held}; no higher level was tried."
    return f"{held}; {found.not_held:.3g} do not."


def _load_table(report: LoadReport) -> str:
    """Return a row for each level, in ascending order."""
    header = [report.unit, "offered/s", "answered/s", "goodput/s"]
    header += [verdict.replace("_", " ") for verdict in VERDICTS]
    header += ["p50 ms", "p95 ms", "p99 ms", "first token p50 / p95 ms", "sent late, p99 ms"]
    rows = []
    for window in sorted(report.windows, key=lambda window: window.level):
        latency_ms = window.all.latency_ms
        row = [f"{window.level:.3g}"]
        row += map(shown, (window.offered_per_s, window.answered_per_s, window.goodput_per_s))
        row += [percent(window.all.share(verdict)) for verdict in VERDICTS]
        if latency_ms is None:
            row += ["-"] * 3
        else:
            row += map(shown, (latency_ms.p50, latency_ms.p95, latency_ms.p99))
        row.append(_pair(window.first_token_ms))
        row.append(shown(window.lag_ms.p99) if window.lag_ms else "-")
        rows.append(row)
    return table(header, rows)


def _task_table(report: LoadReport) -> str:
    """Return each task's SLO and its results at the highest level that holds, or the lowest."""
    window = report.held or min(report.windows, key=lambda window: window.level)
    header = ["task", "SLO: answer / first token, ms"]
    header += [f"{model}: p50 / p95 ms, good" for model in window.by_model]
    rows = []
    for task, slo in report.slos_ms.items():
        row = [task, f"{slo.answer:g} / {slo.first_token:g}"]
        for by_task in window.by_model.values():
            cell = ""
            if numbers := by_task.get(task):
                good = f"{numbers.verdicts['good']} of {numbers.num_due}"
                cell = f"{_pair(numbers.latency_ms)}, {good}"
            row.append(cell)
        rows.append(row)
    return f"At {window.level:.3g} {report.unit}.\n\n{table(header, rows)}"


def _pair(percentiles: Percentiles | None) -> str:
    return "-" if percentiles is None else f"{shown(percentiles.p50)} / {shown(percentiles.p95)}"
