"""The plots of a run, in PNG: an overview by offered load, and a column for each model with a line
for each task.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from loadtest.load.reports.samples import VERDICTS, Verdict
from loadtest.load.reports.windows import Numbers, WindowNumbers
from loadtest.load.traffic.saturation import HELD_SHARE, Saturation

_PANEL_INCHES = (5.0, 3.6)
_COLORS: dict[Verdict, str] = {
    "good": "#2a9d5c",
    "late": "#e9c46a",
    "refused": "#8ab6d6",
    "error": "#c1352b",
    "not_sent": "#999999",
}
_PERCENTILES = ("p50", "p95", "p99")

Value = Callable[[WindowNumbers], float | None]
Points = Sequence[tuple[float, WindowNumbers]]  # with their x coordinates


def overview_png(windows: Sequence[WindowNumbers], unit: str, saturation: Saturation) -> bytes:
    """Draw the overview."""
    points, x_label = _points(windows, unit)
    figure, panels = _panels(2, 3)
    _draw_goodput(panels[0][0], points)
    _draw_shares(panels[0][1], points)
    _draw_latency(panels[0][2], points)
    _draw_first_token(panels[1][0], points)
    _draw_stages(
        panels[1][1], points, "queue depth, mean", lambda window: window.service.queue_depth_mean
    )
    _draw_stages(
        panels[1][2], points, "batch size, mean", lambda window: window.service.batch_size_mean
    )
    for panel in panels.flat:
        _finish(panel, x_label)
        if saturation.held is not None and x_label.startswith("offered"):
            panel.axvline(saturation.held, color="#555", linestyle=":", linewidth=1)
    return _png(figure)


def by_task_png(windows: Sequence[WindowNumbers], unit: str) -> bytes:
    """Draw percentiles of latency and the shares of errors and of requests that are not good, by
    model and task.
    """
    points, x_label = _points(windows, unit)
    models = sorted({model for window in windows for model in window.by_model})
    rows: dict[str, Callable[[Numbers], float | None]] = {
        **{f"{name}, ms": _latency(name) for name in _PERCENTILES},
        "share of errors": lambda numbers: numbers.share("error"),
        "share not good": lambda numbers: 1 - numbers.share("good"),
    }
    figure, panels = _panels(len(rows), len(models))
    for column, model in enumerate(models):
        for row, (title, value) in enumerate(rows.items()):
            panel = panels[row][column]
            _draw_tasks(panel, points, model, value)
            panel.set_title(f"{model}: {title}", fontsize=10)
            _finish(panel, x_label)
            if title.endswith("ms"):
                _scale_by_ratios(panel)
    return _png(figure)


def _points(windows: Sequence[WindowNumbers], unit: str) -> tuple[Points, str]:
    """Return windows by level, or by time if there is only one level; and the label of the axis.

    The last try of a level counts.
    """
    by_level = {window.level: window for window in windows}
    if len(by_level) > 1:
        return sorted(by_level.items()), f"offered load, {unit}"
    first_s = windows[0].start_s
    return [((window.start_s - first_s) / 60, window) for window in windows], "minutes"


def _draw_goodput(panel: Any, points: Points) -> None:
    panel.set_title("requests/s", fontsize=10)
    _line(panel, points, "offered", lambda window: window.offered_per_s, color="#bbb")
    _line(panel, points, "answered", lambda window: window.answered_per_s, color="#e9a23b")
    _line(panel, points, "goodput", lambda window: window.goodput_per_s, color=_COLORS["good"])


def _draw_shares(panel: Any, points: Points) -> None:
    panel.set_title("share of requests", fontsize=10)
    shares = [[window.all.share(verdict) for _, window in points] for verdict in VERDICTS]
    colors = [_COLORS[verdict] for verdict in VERDICTS]
    labels = [verdict.replace("_", " ") for verdict in VERDICTS]
    panel.stackplot([x for x, _ in points], shares, labels=labels, colors=colors)
    panel.axhline(HELD_SHARE, color="#222", linewidth=0.8)


def _draw_latency(panel: Any, points: Points) -> None:
    panel.set_title("latency of answers, ms", fontsize=10)
    for name in _PERCENTILES:
        latency = _latency(name)
        _line(panel, points, name, lambda window, of=latency: of(window.all))  # type: ignore[misc]
    _scale_by_ratios(panel)


def _draw_first_token(panel: Any, points: Points) -> None:
    panel.set_title("time to first token, ms", fontsize=10)
    _line(
        panel,
        points,
        "streams, p50",
        lambda window: window.first_token_ms.p50 if window.first_token_ms else None,
    )
    _line(
        panel,
        points,
        "streams, p95",
        lambda window: window.first_token_ms.p95 if window.first_token_ms else None,
    )
    _line(panel, points, "service, p50", lambda window: window.service.first_token_p50_ms)
    _line(panel, points, "service, p95", lambda window: window.service.first_token_p95_ms)
    _scale_by_ratios(panel)


def _draw_stages(
    panel: Any, points: Points, title: str, of: Callable[[WindowNumbers], Mapping[str, float]]
) -> None:
    panel.set_title(title, fontsize=10)
    for stage in sorted({stage for _, window in points for stage in of(window)}):
        _line(panel, points, stage, lambda window, stage=stage: of(window).get(stage))  # type: ignore[misc]


def _draw_tasks(
    panel: Any, points: Points, model: str, value: Callable[[Numbers], float | None]
) -> None:
    for task in sorted({task for _, window in points for task in window.by_model.get(model, {})}):

        def of_task(window: WindowNumbers, task: str = task) -> float | None:
            numbers = window.by_model.get(model, {}).get(task)
            return None if numbers is None else value(numbers)

        _line(panel, points, task, of_task)


def _latency(name: str) -> Callable[[Numbers], float | None]:
    return lambda numbers: (
        None if numbers.latency_ms is None else float(getattr(numbers.latency_ms, name))
    )


def _line(panel: Any, points: Points, label: str, value: Value, color: str | None = None) -> None:
    """Draw the windows that have a value."""
    known = [(x, y) for x, window in points if (y := value(window)) is not None]
    if known:
        panel.plot(
            *zip(*known, strict=True), "o-", label=label, color=color, markersize=3, linewidth=1.2
        )


def _scale_by_ratios(panel: Any) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def _finish(panel: Any, x_label: str) -> None:
    panel.set_xlabel(x_label, fontsize=8)
    panel.tick_params(labelsize=8, which="both")
    panel.grid(visible=True, which="both", alpha=0.3)
    if panel.get_legend_handles_labels()[0]:
        panel.legend(fontsize=6)


def _panels(num_rows: int, num_columns: int) -> tuple[Figure, Any]:
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=90)
    return file.getvalue()
