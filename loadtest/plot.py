"""A picture of a run: latency percentiles against throughput, a panel for each model, a line for each server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from loadtest.measures import Numbers, numbers_of
from loadtest.run import Run, is_ours
from loadtest.stands import Stand
from loadtest.workloads import NUM_CLIENTS, WorkloadName

_LOADS: tuple[WorkloadName, ...] = ("single", "mixed_4", "mixed")  # the same requests, more and more clients
_PERCENTILES = ("p50_s", "p95_s")
_PANEL_INCHES = (5.0, 4.0)


def write_plot(run: Run, file: Path) -> None:
    """Draw the models that ran with one client and with several."""
    models = [model for model in dict.fromkeys(stand.model for stand in run.stands) if _lines(run, model)]
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(models), height * len(_PERCENTILES)), layout="constrained")
    panels = figure.subplots(len(_PERCENTILES), len(models), squeeze=False)
    for column, model in enumerate(models):
        for row, percentile in enumerate(_PERCENTILES):
            _draw(panels[row][column], model, percentile, _lines(run, model))
    figure.savefig(file, dpi=100)


def _lines(run: Run, model: str) -> dict[str, list[tuple[int, Numbers]]]:
    """Return for each server of a model its numbers by clients, where there are at least two points."""
    stands = [stand for stand in run.stands if stand.model == model]
    lines = {_name(stand): _points(stand) for stand in stands}
    return {name: points for name, points in lines.items() if len(points) > 1}


def _name(stand: Stand) -> str:
    return stand.server.name if is_ours(stand) else f"{stand.server.name}: {stand.server.description}"


def _points(stand: Stand) -> list[tuple[int, Numbers]]:
    return [(NUM_CLIENTS[load], numbers_of(stand.rounds[load])) for load in _LOADS if load in stand.rounds]


def _draw(panel: Any, model: str, percentile: str, lines: Mapping[str, Sequence[tuple[int, Numbers]]]) -> None:
    for name, points in lines.items():
        throughput = [numbers.requests_per_s for _, numbers in points]
        latency_ms = [getattr(numbers, percentile) * 1000 for _, numbers in points]
        is_diptych = name.startswith("diptych")
        panel.plot(throughput, latency_ms, "o-", label=name, linewidth=2.5 if is_diptych else 1.0)
        for (num_clients, _), x, y in zip(points, throughput, latency_ms, strict=True):
            panel.annotate(str(num_clients), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    panel.set_title(f"{model}, {percentile.removesuffix('_s')}", fontsize=10)
    panel.set_xlabel("requests/s (beside a point: clients)")
    panel.set_ylabel("ms")
    panel.set_yscale("log")
    panel.grid(visible=True, which="both", alpha=0.3)
    panel.legend(fontsize=7)
