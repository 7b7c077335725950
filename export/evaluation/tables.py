"""Evaluations as Markdown tables. A cell is `-` where a model was asked nothing of the kind."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from export.evaluation.asking import Evaluation
from export.evaluation.measures import TASK_MEASURES, TaskMeasure
from export.scenes.scoring import Measure

_NOTHING = "-"
_SHOWN_MEASURES: tuple[Measure, ...] = ("exact", "f1_at_50", "f1_at_75", "mask_iou", "empty")


def accuracy_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a row for each task-level measure and a column for each model."""
    rows = [
        [task_measure.heading, *(_shown(task_measure.values(e.scorecard)) for e in evaluations.values())]
        for task_measure in TASK_MEASURES
    ]
    return _table(["measure", *evaluations], rows)


def robustness_table(conditions: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Return each model's measures under each condition, with the points lost against the first condition.

    A point is a hundredth; what was gained is below zero.
    """
    first, *others = conditions
    rows = [
        [model, task_measure.heading, *_under_each(task_measure, [models[model] for models in conditions.values()])]
        for model, task_measure in product(conditions[first], TASK_MEASURES)
    ]
    header = ["model", "measure", first, *(f"{other} (points lost)" for other in others)]
    return _table(header, (row for row in rows if row[2] != _NOTHING))


def question_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a row for each question: for each model its measures, and the latency's median and 95th percentile."""
    names = dict.fromkeys(name for e in evaluations.values() for name in e.latencies_ms)
    rows = [[name, *(cell for e in evaluations.values() for cell in _question_cells(e, name))] for name in names]
    return _table(["question", *(head for model in evaluations for head in (model, "p50 / p95 ms"))], rows)


def _under_each(task_measure: TaskMeasure, evaluations: Sequence[Evaluation]) -> Iterable[str]:
    """Yield the cell of the first condition, then of each other the values and what they lost."""
    first, *others = (task_measure.values(evaluation.scorecard) for evaluation in evaluations)
    yield _shown(first)
    for values in others:
        lost = " / ".join(_points_lost(before, after) for before, after in zip(first, values, strict=True))
        yield f"{_shown(values)} ({lost})"


def _points_lost(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return _NOTHING
    return f"{round(100 * (before - after), 1) + 0:.1f}"  # + 0: no -0.0


def _shown(values: Sequence[float | None]) -> str:
    """Return `0.98 / 0.95`, or one dash where there is no value at all."""
    shown = [_NOTHING if value is None else _two_digits(value) for value in values]
    return " / ".join(shown) if set(shown) != {_NOTHING} else _NOTHING


def _two_digits(value: float) -> str:
    """Return the value rounded down, so that what is shown is reached; a float just under its hundredth is that."""
    return f"{math.floor(100 * value + 1e-9) / 100:.2f}"


def _question_cells(evaluation: Evaluation, name: str) -> tuple[str, str]:
    if name not in evaluation.latencies_ms:
        return "", ""
    shown = [measure for measure in _SHOWN_MEASURES if (name, measure) in evaluation.scorecard.tallies]
    scores = ", ".join(f"{measure} {_two_digits(evaluation.score(name, measure))}" for measure in shown)
    percentiles = statistics.quantiles([*evaluation.latencies_ms[name]] * 2, n=20)  # twice: one value has no quantiles
    return scores, f"{percentiles[9]:.0f} / {percentiles[18]:.0f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
