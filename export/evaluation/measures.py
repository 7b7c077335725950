"""The task-level measures: which questions of a task make one number.

A measure pools every variant of its questions: right, answered and expected are added up before they are divided.
"""

from dataclasses import dataclass

from export.scenes import Scorecard, Tally
from export.scenes.scoring import CONFIDENT_SCORE, Measure
from tasks.table import TASKS


@dataclass(frozen=True, slots=True)
class Pool:
    """One number: a measure of all questions of some tasks, or of some variants such as `captioning short`."""

    label: str
    measure: Measure
    names: tuple[str, ...]

    def value(self, scorecard: Scorecard) -> float | None:
        """Return F1, the share that is right, or the mean IoU; None where there was nothing to measure."""
        tallies = (tally for (name, measure), tally in scorecard.tallies.items() if self._holds(name, measure))
        total = sum(tallies, Tally())
        return total.f1 if total.num_answered + total.num_expected else None

    def _holds(self, name: str, measure: Measure) -> bool:
        return measure == self.measure and any(name == own or name.startswith(f"{own} ") for own in self.names)


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
    return TaskMeasure(f"{task}, F1 at IoU", (Pool("0.5", "f1_at_50", (task,)), Pool("0.75", "f1_at_75", (task,))))


def _variants(task: str, *variants: str) -> TaskMeasure:
    return TaskMeasure(f"{task}, exact", tuple(Pool(variant, "exact", (f"{task} {variant}",)) for variant in variants))


def _reading(task: str, claim: str) -> TaskMeasure:
    """Return the share over all images, and over those with a word: half have none, which is easier to say."""
    pools = Pool("all images", "exact", (task,)), Pool("images with a word", "exact_if_any", (task,))
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
    _single("no word: no text", "empty", "ocr", "ocr_with_regions", "visual_question_answering text"),
    _single("absent label: no box", "empty", "open_vocabulary_detection absent"),
    TaskMeasure(
        f"boxes with score ≥ {CONFIDENT_SCORE}",
        (Pool("precision", "confident_at_50", _DETECTION), Pool("share of boxes", "confident", _DETECTION)),
    ),
)


def task_accuracy(scorecard: Scorecard) -> dict[str, float]:
    """Return every number of the rows that are of a task, by row and number (`ocr, exact: all images`)."""
    return {
        f"{row.title}: {pool.label}" if pool.label else row.title: value
        for row in TASK_MEASURES
        if row.title.partition(",")[0] in TASKS
        for pool in row.pools
        if (value := pool.value(scorecard)) is not None
    }
