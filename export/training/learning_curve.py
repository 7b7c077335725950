"""Draws a run's log: losses above, what validation found below."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from export.training.run_state import RunFolder

_SMOOTHED_OVER = 20  # logged steps
_NOT_A_LOSS = {"step", "step_s", "rate"}


def draw_learning_curve(folder: RunFolder, file: Path) -> None:
    """Write a PNG of the losses (smoothed, logarithmic) and of the accuracies by step."""
    rows = folder.rows()
    figure = Figure(figsize=(11, 9), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    _draw(losses, [row for row in rows if "loss" in row], smoothed_over=_SMOOTHED_OVER)
    losses.set(yscale="log", ylabel=f"loss, mean of {_SMOOTHED_OVER} logged steps")
    _draw(accuracies, [row for row in rows if "loss" not in row], smoothed_over=1)
    accuracies.set(ylim=(0, 1), xlabel="step", ylabel="validation")
    for axes in (losses, accuracies):
        axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def _draw(axes: Axes, rows: list[dict[str, float]], smoothed_over: int) -> None:
    names = dict.fromkeys(name for row in rows for name in row if name not in _NOT_A_LOSS)
    axes.set_prop_cycle(color=mpl.colormaps["tab20"].colors)  # type: ignore[attr-defined]  # a listed colormap
    for name in names:
        steps = [row["step"] for row in rows if name in row]
        values = [row[name] for row in rows if name in row]
        means = [
            sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - smoothed_over + 1) : i + 1])
        ]
        axes.plot(steps, means, label=name, linewidth=1)
