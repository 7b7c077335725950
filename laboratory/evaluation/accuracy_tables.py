"""Evaluations as Markdown tables of task-level measures. A cell is `-` if nothing was measured.

A measure pools the variants of its questions: right, answered and expected are summed before they
are divided.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product

from export.scenes import CONFIDENT_SCORE, Measure, Scorecard, Tally
from laboratory.evaluation.client import Evaluation
from tasks.table import TASKS

_NOTHING = "-"
_SHOWN_MEASURES: tuple[Measure, ...] = ("exact", "f1_at_50", "f1_at_75", "mask_iou", "empty")


@dataclass(frozen=True, slots=True)
class Pool:
    """One measure of all questions of some tasks or variants, such as `captioning short`."""

    label: str
    measure: Measure
    names: tuple[str, ...]

    def value(self, scorecard: Scorecard) -> float | None:
        """Return F1, accuracy or mean IoU, or None without anything to measure."""
        starts = tuple(f"{name} " for name in self.names)
        total = Tally()
        for (name, measure), tally in scorecard.tallies.items():
            if measure == self.measure and f"{name} ".startswith(starts):
                total += tally
        return total.f1 if total.num_answered + total.num_expected else None


@dataclass(frozen=True, slots=True)
class TaskMeasure:
    """One row of an accuracy table: one or more numbers of the same questions."""

    title: str
    pools: tuple[Pool, ...]

    @property
    def heading(self) -> str:
        """`captioning, exact: short / detailed`."""
        labels = " / ".join(pool.label for pool in self.pools)
        return f"{self.title}: {labels}" if labels else self.title

    def values(self, scorecard: Scorecard) -> tuple[float | None, ...]:
        """Return the number of each pool."""
        return tuple(pool.value(scorecard) for pool in self.pools)


def _box_f1(task: str) -> TaskMeasure:
    return TaskMeasure(
        f"{task}, F1 at IoU", (Pool("0.5", "f1_at_50", (task,)), Pool("0.75", "f1_at_75", (task,)))
    )


def _variants(task: str, *variants: str) -> TaskMeasure:
    return TaskMeasure(
        f"{task}, exact",
        tuple(Pool(variant, "exact", (f"{task} {variant}",)) for variant in variants),
    )


def _reading(task: str, claim: str) -> TaskMeasure:
    """Return accuracy over all images and over those with a word: the other half is easier."""
    pools = (
        Pool("all images", "exact", (task,)),
        Pool("images with a word", "exact_if_any", (task,)),
    )
    return TaskMeasure(f"{task}, {claim}", pools)


def _single(title: str, measure: Measure, *names: str) -> TaskMeasure:
    return TaskMeasure(title, (Pool("", measure, names),))


_FREE_DETECTION = ("object_detection", "dense_region_captioning", "region_proposal")
_DETECTION = (*_FREE_DETECTION, "open_vocabulary_detection", "phrase_grounding")

TASK_MEASURES = (
    _variants("captioning", "short", "detailed"),
    *(_box_f1(task) for task in _DETECTION),
    _single("instance_segmentation, mean mask IoU", "mask_iou", "instance_segmentation"),
    _reading("ocr", "exact"),
    _reading("ocr_with_regions", "exact and quad IoU ≥ 0.5"),
    _variants("region_description", "category", "description", "text"),
    _single("visual_question_answering, exact", "exact", "visual_question_answering"),
    _single("no object: no box", "empty", *_FREE_DETECTION, "open_vocabulary_detection no object"),
    _single(
        "no word: no text", "empty", "ocr", "ocr_with_regions", "visual_question_answering text"
    ),
    _single("absent label: no box", "empty", "open_vocabulary_detection absent"),
    TaskMeasure(
        f"boxes with score ≥ {CONFIDENT_SCORE}",
        (
            Pool("precision", "confident_at_50", _DETECTION),
            Pool("share of boxes", "confident", _DETECTION),
        ),
    ),
)


def task_accuracy(scorecard: Scorecard) -> dict[str, float]:
    """Return a task's numbers by row and label, such as `ocr, exact: all images`."""
    found = {}
    for row in TASK_MEASURES:
        if row.title.partition(",")[0] not in TASKS:
            continue
        for pool in row.pools:
            value = pool.value(scorecard)
            if value is not None:
                found[f"{row.title}: {pool.label}" if pool.label else row.title] = value
    return found


def accuracy_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a table with a row per task-level measure and a column per model."""
    rows = []
    for task_measure in TASK_MEASURES:
        cells = [_shown(task_measure.values(e.scorecard)) for e in evaluations.values()]
        rows.append([task_measure.heading, *cells])
    return _table(["measure", *evaluations], rows)


def robustness_table(conditions: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Return each model's measures by condition, with the points lost against the first.

    A point is a hundredth; a gain is negative.
    """
    first, *others = conditions
    rows = []
    for model, task_measure in product(conditions[first], TASK_MEASURES):
        under_each = [models[model] for models in conditions.values()]
        cells = list(_under_each(task_measure, under_each))
        if cells[0] != _NOTHING:
            rows.append([model, task_measure.heading, *cells])
    header = ["model", "measure", first, *(f"{other} (points lost)" for other in others)]
    return _table(header, rows)


def question_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a row per question: each model's measures, median and p95 latency."""
    names = dict.fromkeys(chain.from_iterable(e.latencies_ms for e in evaluations.values()))
    rows = []
    for name in names:
        cells = chain.from_iterable(_question_cells(e, name) for e in evaluations.values())
        rows.append([name, *cells])
    heads = chain.from_iterable((model, "p50 / p95 ms") for model in evaluations)
    return _table(["question", *heads], rows)


def _under_each(task_measure: TaskMeasure, evaluations: Sequence[Evaluation]) -> Iterable[str]:
    """Yield the first condition's cell, then each other one's values and points lost."""
    first, *others = (task_measure.values(evaluation.scorecard) for evaluation in evaluations)
    yield _shown(first)
    for values in others:
        lost = " / ".join(
            _points_lost(before, after) for before, after in zip(first, values, strict=True)
        )
        yield f"{_shown(values)} ({lost})"


def _points_lost(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return _NOTHING
    return f"{round(100 * (before - after), 1) + 0:.1f}"  # + 0: no -0.0


def _shown(values: Sequence[float | None]) -> str:
    """Return `0.98 / 0.95`, or one dash if there is no value at all."""
    shown = [_NOTHING if value is None else _two_digits(value) for value in values]
    return " / ".join(shown) if set(shown) != {_NOTHING} else _NOTHING


def _two_digits(value: float) -> str:
    """Round down, so that a shown bar is reached; forgive float error below a hundredth."""
    return f"{math.floor(100 * value + 1e-9) / 100:.2f}"


def _question_cells(evaluation: Evaluation, name: str) -> tuple[str, str]:
    if name not in evaluation.latencies_ms:
        return "", ""
    shown = [
        measure for measure in _SHOWN_MEASURES if (name, measure) in evaluation.scorecard.tallies
    ]
    scores = ", ".join(
        f"{measure} {_two_digits(evaluation.score(name, measure))}" for measure in shown
    )
    # twice: one value has no quantiles
    percentiles = statistics.quantiles([*evaluation.latencies_ms[name]] * 2, n=20)
    return scores, f"{percentiles[9]:.0f} / {percentiles[18]:.0f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])
