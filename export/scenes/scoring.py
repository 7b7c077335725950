"""Scores the `result` of a REST answer against the true answer, and sums scores over questions.

Labels and texts must be equal; boxes, masks and quads are compared by intersection over union
(IoU). Results have the wire format: `text`, `detections`, `instances` or `text_regions`.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from export.scenes.overlap import box_iou, mask_iou, quad_iou
from export.scenes.truth import (
    DetectionsTruth,
    InstancesTruth,
    LabelledBox,
    Question,
    TextRegionsTruth,
    TextTruth,
    Truth,
)

Result = Mapping[str, Any]
Measure = Literal[
    "exact",  # share of answers that are equal: text, or words and their places
    "exact_if_any",  # the same, over questions whose true answer is not empty
    "empty",  # share of empty answers, over questions whose true answer is empty
    "f1_at_50",  # F1 of boxes; a match has the same label and an IoU of at least 0.5
    "f1_at_75",
    "confident",  # share of the boxes with a score of at least CONFIDENT_SCORE
    "confident_at_50",  # precision of these boxes
    "mask_iou",  # mean IoU
]

CONFIDENT_SCORE = 0.8
_RESULT_KEYS: dict[type[Truth], str] = {
    TextTruth: "text",
    DetectionsTruth: "detections",
    InstancesTruth: "instances",
    TextRegionsTruth: "text_regions",
}


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of right answers (or sum of IoUs), of given answers and of expected ones."""

    num_right: float = 0.0
    num_answered: int = 0
    num_expected: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        """Return the sum of both tallies."""
        return Tally(
            self.num_right + other.num_right,
            self.num_answered + other.num_answered,
            self.num_expected + other.num_expected,
        )

    @property
    def precision(self) -> float:
        """Share of right answers among the given; 1 if none was given."""
        return self.num_right / self.num_answered if self.num_answered else 1.0

    @property
    def recall(self) -> float:
        """Share of right answers among the expected; 1 if none was expected."""
        return self.num_right / self.num_expected if self.num_expected else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; the accuracy if each question has one answer."""
        total = self.num_answered + self.num_expected
        return 2 * self.num_right / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Tallies by question name and measure."""

    tallies: Mapping[tuple[str, Measure], Tally] = field(default_factory=dict)

    def __add__(self, other: "Scorecard") -> "Scorecard":
        """Return the sum of both scorecards."""
        keys = [*self.tallies, *(key for key in other.tallies if key not in self.tallies)]
        return Scorecard({key: self.tally(*key) + other.tally(*key) for key in keys})

    def tally(self, name: str, measure: Measure) -> Tally:
        """Return a tally, an empty one if there is none."""
        return self.tallies.get((name, measure), Tally())


def score_answer(result: Result, question: Question, image_size_wh: tuple[int, int]) -> Scorecard:
    """Score a result against the true answer of a question `scaled` to the image.

    Raise ValueError if the result has another kind than the task's.
    """
    key = _RESULT_KEYS[type(question.truth)]
    if list(result) != [key]:
        raise ValueError(f"result of {question.task} has keys {list(result)}; expected: [{key!r}]")
    answer = result[key]
    measures: dict[Measure, Tally]
    match question.truth:
        case TextTruth(text):
            measures = _exactness(answer == text, answer, text)
        case DetectionsTruth() as truth:
            measures = detection_measures(answer, truth)
        case InstancesTruth(outlines):
            measures = {"mask_iou": Tally(mask_iou(answer, outlines, image_size_wh), 1, 1)}
        case TextRegionsTruth(words):
            # the same words in order, each quad with an IoU of at least 0.5
            is_exact = len(answer) == len(words) and all(
                region["text"] == word.text
                and quad_iou(region["quad"], word.quad_xy, image_size_wh) >= 0.5
                for region, word in zip(answer, words, strict=True)
            )
            measures = _exactness(is_exact, answer, words)
    return Scorecard({(question.name, measure): tally for measure, tally in measures.items()})


def _exactness(is_exact: bool, answer: Sized, expected: Sized) -> dict[Measure, Tally]:
    if expected:
        return {"exact": _claim(is_exact), "exact_if_any": _claim(is_exact)}
    return {"exact": _claim(is_exact), "empty": _claim(not answer)}


def detection_measures(
    detections: Sequence[Result], truth: DetectionsTruth
) -> dict[Measure, Tally]:
    confident = [detection for detection in detections if detection["score"] >= CONFIDENT_SCORE]
    measures: dict[Measure, Tally] = {
        "confident": Tally(len(confident), len(detections), len(detections)),
        "confident_at_50": replace(
            match_boxes(confident, truth.boxes, 0.5), num_expected=len(confident)
        ),
    }
    if not truth.boxes:
        return measures | {"empty": _claim(not detections)}
    return measures | {
        "f1_at_50": match_boxes(detections, truth.boxes, 0.5),
        "f1_at_75": match_boxes(detections, truth.boxes, 0.75),
    }


def match_boxes(
    detections: Sequence[Result], boxes: Sequence[LabelledBox], min_iou: float
) -> Tally:
    """Match each detection, best score first, with the best unmatched box of its label."""
    free = list(boxes)
    for detection in sorted(detections, key=lambda detection: -detection["score"]):
        candidates = [box for box in free if box.label == (detection["label"] or "")]
        best = max(
            candidates, key=lambda box: box_iou(box.box_xyxy, detection["box"]), default=None
        )
        if best is not None and box_iou(best.box_xyxy, detection["box"]) >= min_iou:
            free.remove(best)
    return Tally(len(boxes) - len(free), len(detections), len(boxes))


def _claim(is_right: bool) -> Tally:
    return Tally(float(is_right), 1, 1)
