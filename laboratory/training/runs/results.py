"""The results of a run: the model as a Hugging Face checkpoint, and the learning curve as a
picture.
"""

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from laboratory.training.runs.run_folder import RunFolder

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types

_SMOOTHED_OVER = 20  # logged steps
_SHOWN_MEASURES = (": exact", ": f1_at_75", ": mask_iou")  # the log has all
_NOT_A_LOSS = {"step", "step_s", "rate"}
_LINE_STYLES = ("-", "--", ":")
_NUM_COLORS = 10


def write_checkpoint(trainee: Any, folder: Path) -> None:
    """Write half-precision weights, configuration, rules, tokenizer and image processor."""
    model = copy.deepcopy(trainee.model).to("cpu", torch.float16)
    model.save_pretrained(folder)
    trainee.processor.save_pretrained(folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights in float32, by their names in the model's state."""
    model: nn.Module = _Model.from_pretrained(folder, dtype=torch.float32)
    return model.state_dict()


def draw_learning_curve(folder: RunFolder, file: Path) -> None:
    """Write a PNG of losses (smoothed, logarithmic) and validation accuracies by step."""
    rows = folder.rows()
    figure = Figure(figsize=(11, 9), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    _draw(losses, [row for row in rows if "loss" in row], _SMOOTHED_OVER)
    losses.set(yscale="log", ylabel=f"loss, mean of {_SMOOTHED_OVER} logged steps")
    _draw(accuracies, [_shown(row) for row in rows if "loss" not in row], 1)
    accuracies.set(ylim=(0, 1), xlabel="step", ylabel="validation")
    for axes in (losses, accuracies):
        axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=100)


def _shown(row: dict[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if name == "step" or name.endswith(_SHOWN_MEASURES)
    }


def _draw(axes: Axes, rows: list[dict[str, float]], smoothed_over: int) -> None:
    names = dict.fromkeys(chain.from_iterable(rows))
    for index, name in enumerate(name for name in names if name not in _NOT_A_LOSS):
        steps = [row["step"] for row in rows if name in row]
        values = [row[name] for row in rows if name in row]
        means = [
            sum(part) / len(part)
            for i in range(len(values))
            if (part := values[max(0, i - smoothed_over + 1) : i + 1])
        ]
        axes.plot(
            steps,
            means,
            label=name,
            color=f"C{index % _NUM_COLORS}",
            linestyle=_LINE_STYLES[index // _NUM_COLORS],
        )
