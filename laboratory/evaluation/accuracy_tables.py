"""Evaluations as Markdown tables of task-level measures. A cell is `-` if nothing was measured.

A measure pools the variants of its questions: right, answered and expected are summed before they
are divided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from laboratory.scoring import CONFIDENT_SCORE, Measure, Scorecard, Tally
from loadtest.figures import table
from tasks.table import TASKS


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


def _variants(task: str, *variants: str) -> tuple[Pool, ...]:
    return tuple(Pool(variant, "exact", (f"{task} {variant}",)) for variant in variants)


def _boxes(task: str) -> tuple[Pool, ...]:
    return (Pool("0.5", "f1_at_50", (task,)), Pool("0.75", "f1_at_75", (task,)))


def _reading(task: str) -> tuple[Pool, ...]:
    """Return accuracy over all images and over those with a word: the other half is easier."""
    with_word = Pool("images with a word", "exact_if_any", (task,))
    return (Pool("all images", "exact", (task,)), with_word)


_FREE_DETECTION = ("object_detection", "dense_region_captioning", "region_proposal")
_DETECTION = (*_FREE_DETECTION, "open_vocabulary_detection", "phrase_grounding")
_NO_OBJECT = (*_FREE_DETECTION, "open_vocabulary_detection no object")
_NO_WORD = ("ocr", "ocr_with_regions", "visual_question_answering text")

TASK_MEASURES: dict[str, tuple[Pool, ...]] = {
    "captioning, exact": _variants("captioning", "short", "detailed"),
    **{f"{task}, F1 at IoU": _boxes(task) for task in _DETECTION},
    "instance_segmentation, mean mask IoU": (Pool("", "mask_iou", ("instance_segmentation",)),),
    "ocr, exact": _reading("ocr"),
    "ocr_with_regions, exact and quad IoU ≥ 0.5": _reading("ocr_with_regions"),
    "region_description, exact": _variants("region_description", "category", "description", "text"),
    "visual_question_answering, exact": (Pool("", "exact", ("visual_question_answering",)),),
    "no object: no box": (Pool("", "empty", _NO_OBJECT),),
    "no word: no text": (Pool("", "empty", _NO_WORD),),
    "absent label: no box": (Pool("", "empty", ("open_vocabulary_detection absent",)),),
    f"boxes with score ≥ {CONFIDENT_SCORE}": (
        Pool("precision", "confident_at_50", _DETECTION),
        Pool("share of boxes", "confident", _DETECTION),
    ),
}


def task_accuracy(scorecard: Scorecard) -> dict[str, float]:
    """Return a task's numbers by row and label, such as `ocr, exact: all images`."""
    accuracy = {}
    for title, pools in TASK_MEASURES.items():
        if title.partition(",")[0] not in TASKS:
            continue
        for pool in pools:
            value = pool.value(scorecard)
            if value is not None:
                accuracy[f"{title}: {pool.label}" if pool.label else title] = value
    return accuracy


def accuracy_table(scorecards: Mapping[str, Scorecard]) -> str:
    """Return a table with a row per task-level measure and a column per model."""
    rows = []
    for title, pools in TASK_MEASURES.items():
        labels = " / ".join(pool.label for pool in pools)
        cells = []
        for scorecard in scorecards.values():
            cells.append(_cell([pool.value(scorecard) for pool in pools]))
        rows.append([f"{title}: {labels}" if labels else title, *cells])
    return table(["measure", *scorecards], rows)


def _cell(values: Sequence[float | None]) -> str:
    """Return `0.98 / 0.95`, or one dash if there is no value at all.

    Values are rounded down, so that a shown bar is reached.
    """
    if all(value is None for value in values):
        return "-"
    texts = []
    for value in values:
        if value is None:
            texts.append("-")
        else:
            hundredths = math.floor(100 * value + 1e-9)  # forgives float error
            texts.append(f"{hundredths / 100:.2f}")
    return " / ".join(texts)
