"""Scores the `result` of a REST answer against the true answer, and sums scores over questions.

Labels and texts must be equal; boxes, masks and quads are compared by intersection over union
(IoU), polygons and quads rasterised by pycocotools. Results have the wire format: `text`,
`detections`, `instances` or `text_regions`.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.matching import LabelledBox
from laboratory.questions import (
    DetectionsTruth,
    InstancesTruth,
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


QUAD_GRID_PX = 1000

Points = Sequence[Sequence[float]]
RunLengths = Any  # COCO RLE of pycocotools: {"size": [H, W], "counts": bytes}


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the IoU of two boxes `x1, y1, x2, y2`; 0 if one has no area."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    intersection = width * height
    union = _area(first) + _area(second) - intersection
    return intersection / union if union > 0 else 0.0


def quad_iou(first: Points, second: Points, image_size_wh: tuple[int, int]) -> float:
    """Return the IoU of two quads, rasterised on a grid that is finer than a small image."""
    scale_x = QUAD_GRID_PX / image_size_wh[0]
    scale_y = QUAD_GRID_PX / image_size_wh[1]
    masks = []
    for quad in (first, second):
        scaled = [(x * scale_x, y * scale_y) for x, y in quad]
        masks.append(_rasterised([scaled], (QUAD_GRID_PX, QUAD_GRID_PX)))
    return _mask_iou(*masks)


def mask_iou(
    instances: Sequence[Mapping[str, Any]], rings: Sequence[Points], image_size_wh: tuple[int, int]
) -> float:
    """Return the IoU of all instances' union (polygons or COCO RLE) and all rings' union."""
    masks = []
    for instance in instances:
        if "mask" in instance:
            given = instance["mask"]
            masks.append({"size": given["size"], "counts": given["counts"].encode()})
        else:
            masks.append(_rasterised(instance["polygons"], image_size_wh))
    return _mask_iou(coco_mask.merge(masks), _rasterised(rings, image_size_wh)) if masks else 0.0


def _rasterised(rings: Sequence[Points], image_size_wh: tuple[int, int]) -> RunLengths:
    """Return the union of the rings; a ring of fewer than three points has no area."""
    width, height = image_size_wh
    closed = [ring for ring in rings if len(ring) >= 3]
    flat = [list(map(float, chain.from_iterable(ring))) for ring in closed]
    if not flat:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _mask_iou(first: RunLengths, second: RunLengths) -> float:
    """Return the IoU; 0 if the masks differ in size."""
    if list(first["size"]) != list(second["size"]):
        return 0.0
    return float(coco_mask.iou([first], [second], [False])[0][0])


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
