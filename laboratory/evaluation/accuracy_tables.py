"""Evaluations as Markdown tables of task-level measures. A cell is `-` if nothing was measured.

A measure pools the variants of its questions: right, answered and expected are summed before they
are divided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.scenes import CONFIDENT_SCORE, Measure, Scorecard, Tally
from loadtest.figures import table
from tasks.table import TASKS

_NOTHING = "-"


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
    *(
        TaskMeasure(
            f"{task}, F1 at IoU",
            (Pool("0.5", "f1_at_50", (task,)), Pool("0.75", "f1_at_75", (task,))),
        )
        for task in _DETECTION
    ),
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


def accuracy_table(scorecards: Mapping[str, Scorecard]) -> str:
    """Return a table with a row per task-level measure and a column per model."""
    rows = []
    for row in TASK_MEASURES:
        cells = [_shown(row.values(scorecard)) for scorecard in scorecards.values()]
        rows.append([row.heading, *cells])
    return table(["measure", *scorecards], rows)


def _shown(values: Sequence[float | None]) -> str:
    """Return `0.98 / 0.95`, or one dash if there is no value at all.

    Values are rounded down, so that a shown bar is reached.
    """
    shown = []
    for value in values:
        if value is None:
            shown.append(_NOTHING)
        else:
            hundredths = math.floor(100 * value + 1e-9)  # forgives float error
            shown.append(f"{hundredths / 100:.2f}")
    return " / ".join(shown) if set(shown) != {_NOTHING} else _NOTHING
