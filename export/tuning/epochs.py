"""The epochs of a run: one line and three answers for people, a curve as PNG.

The numbers of an epoch are in the trainer's log, which each checkpoint has: a resumed run knows
those before it.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from export.tuning.held_out import HeldOutScore, ShownAnswer

_MAX_SHOWN_CHARS = 100
_MIN_IMAGES = 5  # resampling fewer gives an interval that is far too narrow
_SCORE = "score"


@dataclass(frozen=True, slots=True)
class Epoch:
    """Mean losses of an epoch, and the score after it."""

    number: int
    loss: float
    held_out_loss: float
    score: HeldOutScore


class Bar(ProgressCallback):
    """The trainer's bar without its lines."""

    def on_log(self, *_arguments: Any, **_named: Any) -> None:
        """Print nothing."""


class EpochReport(TrainerCallback):
    """Scores each epoch after its evaluation, adds it to the trainer's log, and prints a line."""

    def __init__(self, score: Callable[[], HeldOutScore]) -> None:
        self._score = score
        self._start_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_named: Any,
    ) -> None:
        self._start_s = time.monotonic()
        self._first_step = state.global_step

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_named: Any,
    ) -> None:
        row: dict[str, Any] = state.log_history[-1]
        row[_SCORE] = asdict(self._score())
        epoch = epochs_of(state.log_history)[-1]
        is_kept = state.best_metric is None or epoch.held_out_loss < state.best_metric
        step_s = (time.monotonic() - self._start_s) / (state.global_step - self._first_step)
        left_s = step_s * (state.max_steps - state.global_step)
        tqdm.write(epoch_line(epoch, int(args.num_train_epochs), is_kept, left_s), sys.stdout)
        if is_kept:
            for each in epoch.score.shown:
                tqdm.write(f"  {shown_line(each)}", sys.stdout)
        sys.stdout.flush()


def epochs_of(log: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """Return the scored epochs of a trainer's log."""
    found = []
    loss = float("nan")
    for row in log:
        loss = row.get("loss", loss)
        if _SCORE in row:
            shown = tuple(ShownAnswer(**each) for each in row[_SCORE]["shown"])
            score = HeldOutScore(**{**row[_SCORE], "shown": shown})
            found.append(Epoch(round(row["epoch"]), loss, row["eval_loss"], score))
    return found


def kept_epoch(epochs: Sequence[Epoch]) -> Epoch:
    """Return the first epoch with the least held-out loss, which the trainer keeps."""
    return min(epochs, key=lambda each: each.held_out_loss)


def epoch_line(epoch: Epoch, num_epochs: int, is_kept: bool, left_s: float) -> str:
    kept = ", kept" if is_kept else ""
    left = f"; {duration(left_s)} left" if epoch.number < num_epochs else ""
    return (
        f"epoch {epoch.number} of {num_epochs}: loss {epoch.loss:.4f}, held out"
        f" {epoch.held_out_loss:.4f}, {score_text(epoch.score)}{kept}{left}"
    )


def score_text(score: HeldOutScore) -> str:
    interval = f" [{score.low:.3f}, {score.high:.3f}]"
    return f"F1 {score.f1:.3f}{interval if score.num_images >= _MIN_IMAGES else ''}"


def shown_line(shown: ShownAnswer) -> str:
    texts = []
    for text in (shown.prompt, shown.expected, shown.got):
        is_long = len(text) > _MAX_SHOWN_CHARS
        texts.append(f"{text[:_MAX_SHOWN_CHARS]}…" if is_long else text)
    prompt, expected, got = texts
    return f"{prompt!r}: expected {expected!r}, got {got!r}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def draw_curve(epochs: Sequence[Epoch], file: Path) -> None:
    """Draw losses and F1 by epoch, with the kept one marked."""
    numbers = [each.number for each in epochs]
    figure = Figure(figsize=(7, 4), layout="constrained")
    losses = figure.subplots()
    losses.plot(numbers, [each.loss for each in epochs], "o-", label="loss, trained")
    losses.plot(numbers, [each.held_out_loss for each in epochs], "o-", label="loss, held out")
    losses.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    losses.axvline(kept_epoch(epochs).number, color="grey", linestyle=":", label="kept")
    scores = losses.twinx()
    scores.plot(
        numbers, [each.score.f1 for each in epochs], "s--", color="C2", label="F1, held out"
    )
    low = [each.score.low for each in epochs]
    scores.fill_between(numbers, low, [each.score.high for each in epochs], color="C2", alpha=0.15)
    scores.set(ylabel="F1", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=100)
