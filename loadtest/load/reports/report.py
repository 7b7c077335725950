"""The report of a run: load.json has all numbers, load.md the tables, load.html tables and plots,
load.png a plot.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest.figures import percent, shown, table
from loadtest.load.reports.page import html_page
from loadtest.load.reports.plots import by_task_png, overview_png
from loadtest.load.reports.samples import VERDICTS
from loadtest.load.reports.service_metrics import ServiceNumbers
from loadtest.load.reports.windows import Numbers, Percentiles, WindowNumbers
from loadtest.load.traffic.saturation import HELD_SHARE, Saturation, saturation_of
from loadtest.load.traffic.traffic_mix import Slo

_VERDICT_NAMES = [verdict.replace("_", " ") for verdict in VERDICTS]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All numbers of a run."""

    facts: Mapping[str, str]
    unit: str  # of levels
    slos_ms: Mapping[str, Slo]
    windows: Sequence[WindowNumbers]
    total: Numbers  # of the whole run, including the time between windows
    by_api: Mapping[str, Numbers]  # likewise

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


def write_report(report: LoadReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**asdict(report), "saturation": asdict(report.saturation)}
    (folder / "load.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "load.md").write_text(markdown(report), encoding="utf-8")
    overview = overview_png(report.windows, report.unit, report.saturation)
    (folder / "load.png").write_bytes(overview)
    page = html_page(markdown(report), [overview, by_task_png(report.windows, report.unit)])
    (folder / "load.html").write_text(page, encoding="utf-8")


def markdown(report: LoadReport) -> str:
    """Return facts and tables; docs/tables.py copies some of them by their titles."""
    facts = "\n".join(f"- {name}: {value}" for name, value in report.facts.items())
    sections = [
        ("Saturation", _saturation_text(report)),
        ("Offered and answered", _load_table(report)),
        ("Tasks", _task_table(report)),
        ("Metrics of the service", _service_table(report)),
        ("Interfaces, whole run", _api_table(report)),
    ]
    return f"# Load\n\n{facts}\n" + "".join(f"\n## {title}\n\n{body}\n" for title, body in sections)


def _saturation_text(report: LoadReport) -> str:
    """Return a sentence about the saturation point."""
    found = report.saturation
    unit = report.unit
    steps = [window.step for window in report.windows]
    if len({step.level for step in steps}) == 1:
        return (
            f"{sum(step.holds for step in steps)} of {len(steps)} windows at {steps[0].level:.3g}"
            f" {unit} hold."
        )
    if found.held is None:
        return (
            f"No level held, the lowest was {min(window.level for window in report.windows):.3g}"
            f" {unit}."
        )
    held = (
        f"{found.held:.3g} {unit} hold: {HELD_SHARE:.0%} or more of the due requests are answered"
        " within their SLO"
    )
    if found.not_held is None:
        return f"{held}; no higher level was tried."
    return f"{held}; {found.not_held:.3g} do not."


def _load_table(report: LoadReport) -> str:
    """Return a row for each level, in ascending order."""
    header = [report.unit, "offered/s", "answered/s", "goodput/s", *_VERDICT_NAMES]
    header += ["p50 ms", "p95 ms", "p99 ms", "first token p50 / p95 ms", "sent late, p99 ms"]
    rows = [
        [
            f"{window.level:.3g}",
            *map(shown, (window.offered_per_s, window.answered_per_s, window.goodput_per_s)),
            *(percent(window.all.share(verdict)) for verdict in VERDICTS),
            *_shown_percentiles(window.all.latency_ms),
            _pair(window.first_token_ms),
            shown(window.lag_ms.p99) if window.lag_ms else "-",
        ]
        for window in sorted(report.windows, key=lambda window: window.level)
    ]
    return table(header, rows)


def _service_table(report: LoadReport) -> str:
    """Return time to first token, queues (mean / maximum) and batches (mean) for each level."""
    windows = sorted(report.windows, key=lambda window: window.level)
    queues = sorted({stage for window in windows for stage in window.service.queue_depth_mean})
    batches = sorted({stage for window in windows for stage in window.service.batch_size_mean})
    rows = [["first token, p50 / p95 ms", *(_first_token(window.service) for window in windows)]]
    rows += [
        [f"queue: {stage}", *(_queue(window.service, stage) for window in windows)]
        for stage in queues
    ]
    rows += [
        [f"batch: {stage}", *(_batch(window.service, stage) for window in windows)]
        for stage in batches
    ]
    return table([report.unit, *(f"{window.level:.3g}" for window in windows)], rows)


def _first_token(service: ServiceNumbers) -> str:
    times_ms = (service.first_token_p50_ms, service.first_token_p95_ms)
    return " / ".join("-" if ms is None else shown(ms) for ms in times_ms)


def _queue(service: ServiceNumbers, stage: str) -> str:
    if stage not in service.queue_depth_mean:
        return "-"
    return f"{shown(service.queue_depth_mean[stage])} / {service.queue_depth_max[stage]:g}"


def _batch(service: ServiceNumbers, stage: str) -> str:
    return shown(service.batch_size_mean[stage]) if stage in service.batch_size_mean else "-"


def _task_table(report: LoadReport) -> str:
    """Return the SLO of each task and its results at the highest level that holds, or else at the
    lowest.
    """
    window = report.held or min(report.windows, key=lambda window: window.level)
    header = ["task", "SLO: answer / first token, ms"]
    header += [f"{model}: p50 / p95 ms, good" for model in window.by_model]
    rows = [
        [
            task,
            f"{slo.answer:g} / {slo.first_token:g}",
            *(_task_cell(of.get(task)) for of in window.by_model.values()),
        ]
        for task, slo in report.slos_ms.items()
    ]
    return f"At {window.level:.3g} {report.unit}.\n\n{table(header, rows)}"


def _task_cell(numbers: Numbers | None) -> str:
    if numbers is None:
        return ""
    return f"{_pair(numbers.latency_ms)}, {numbers.verdicts['good']} of {numbers.num_due}"


def _api_table(report: LoadReport) -> str:
    """Return the outcomes of each interface in the whole run."""
    header = ["interface", "due", *_VERDICT_NAMES, "statuses"]
    rows = [
        [api, str(numbers.num_due), *map(str, numbers.verdicts.values()), _counts(numbers.statuses)]
        for api, numbers in {**report.by_api, "all": report.total}.items()
    ]
    return table(header, rows)


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _shown_percentiles(percentiles: Percentiles | None) -> list[str]:
    if percentiles is None:
        return ["-"] * 3
    return [shown(percentiles.p50), shown(percentiles.p95), shown(percentiles.p99)]


def _pair(percentiles: Percentiles | None) -> str:
    return "-" if percentiles is None else f"{shown(percentiles.p50)} / {shown(percentiles.p95)}"
