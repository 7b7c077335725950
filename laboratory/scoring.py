"""Scores the `result` of a REST answer against the true answer, sums scores over questions, and
shows them as tables of task-level measures.

Labels and texts must be equal; boxes, masks and quads are compared by intersection over union
(IoU), polygons and quads rasterised by pycocotools. Results have the wire format: `text`,
`detections`, `instances` or `text_regions`.

A task-level measure pools the variants of its questions: right, answered and expected are summed
before they are divided. A cell of a table is `-` if nothing was measured.
"""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.matching import LabelledBox, greedy_pairs, pairwise_iou
from laboratory.questions import (
    DetectionsTruth,
    InstancesTruth,
    Question,
    TextRegionsTruth,
    TextTruth,
    Truth,
)
from loadtest.figures import table

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
Points = Sequence[Sequence[float]]
RunLengths = Any  # COCO RLE of pycocotools: {"size": [H, W], "counts": bytes}

CONFIDENT_SCORE = 0.8
QUAD_GRID_PX = 1000
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
        return Tally(
            self.num_right + other.num_right,
            self.num_answered + other.num_answered,
            self.num_expected + other.num_expected,
        )

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
        tallies = dict(self.tallies)
        for key, tally in other.tallies.items():
            tallies[key] = self.tally(*key) + tally
        return Scorecard(tallies)

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
        case DetectionsTruth(boxes):
            measures = _detection_measures(answer, boxes)
        case InstancesTruth(outlines):
            measures = {"mask_iou": Tally(mask_iou(answer, outlines, image_size_wh), 1, 1)}
        case TextRegionsTruth(words):
            # the same words in order, each quad with an IoU of at least 0.5
            is_exact = len(answer) == len(words)
            for region, word in zip(answer, words, strict=False):
                iou = quad_iou(region["quad"], word.quad_xy, image_size_wh)
                is_exact = is_exact and region["text"] == word.text and iou >= 0.5
            measures = _exactness(is_exact, answer, words)
    return Scorecard({(question.name, measure): tally for measure, tally in measures.items()})


def _exactness(is_exact: bool, answer: Sized, expected: Sized) -> dict[Measure, Tally]:
    if expected:
        return {"exact": _claim(is_exact), "exact_if_any": _claim(is_exact)}
    return {"exact": _claim(is_exact), "empty": _claim(not answer)}


def _claim(is_right: bool) -> Tally:
    return Tally(float(is_right), 1, 1)


def _detection_measures(
    detections: Sequence[Result], boxes: Sequence[LabelledBox]
) -> dict[Measure, Tally]:
    confident = [detection for detection in detections if detection["score"] >= CONFIDENT_SCORE]
    matched = match_boxes(confident, boxes, 0.5)
    measures: dict[Measure, Tally] = {
        "confident": Tally(len(confident), len(detections), len(detections)),
        "confident_at_50": replace(matched, num_expected=len(confident)),
    }
    if not boxes:
        return measures | {"empty": _claim(not detections)}
    return measures | {
        "f1_at_50": match_boxes(detections, boxes, 0.5),
        "f1_at_75": match_boxes(detections, boxes, 0.75),
    }


def match_boxes(
    detections: Sequence[Result], boxes: Sequence[LabelledBox], min_iou: float
) -> Tally:
    """Match detections and boxes of the same label, the best IoU first."""
    ious = pairwise_iou(
        [box.box_xyxy for box in boxes], [detection["box"] for detection in detections]
    )
    for row, box in enumerate(boxes):
        for column, detection in enumerate(detections):
            ious[row, column] *= box.label == (detection["label"] or "")
    return Tally(len(greedy_pairs(ious, min_iou)), len(detections), len(boxes))


def quad_iou(first: Points, second: Points, image_size_wh: tuple[int, int]) -> float:
    """Return the IoU of two quads, rasterised on a grid that is finer than a small image."""
    scale = QUAD_GRID_PX / np.array(image_size_wh)
    masks = []
    for quad in (first, second):
        masks.append(_rasterised([np.array(quad) * scale], (QUAD_GRID_PX, QUAD_GRID_PX)))
    return _mask_iou(*masks)


def mask_iou(
    instances: Sequence[Result], rings: Sequence[Points], image_size_wh: tuple[int, int]
) -> float:
    """Return the IoU of all instances' union (polygons or COCO RLE) and all rings' union."""
    masks = []
    for instance in instances:
        if "mask" in instance:
            mask = instance["mask"]
            masks.append({"size": mask["size"], "counts": mask["counts"].encode()})
        else:
            masks.append(_rasterised(instance["polygons"], image_size_wh))
    return _mask_iou(coco_mask.merge(masks), _rasterised(rings, image_size_wh)) if masks else 0.0


def _rasterised(rings: Sequence[Any], image_size_wh: tuple[int, int]) -> RunLengths:
    """Return the union of the rings; a ring of fewer than three points has no area."""
    width, height = image_size_wh
    flat = []
    for ring in rings:
        if len(ring) >= 3:
            flat.append(list(map(float, chain.from_iterable(ring))))
    if not flat:
        return coco_mask.encode(np.zeros((height, width), np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _mask_iou(first: RunLengths, second: RunLengths) -> float:
    """Return the IoU; 0 if the masks differ in size."""
    if list(first["size"]) != list(second["size"]):
        return 0.0
    return float(coco_mask.iou([first], [second], [False])[0][0])


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
    **{
        f"{task}, F1 at IoU": (Pool("0.5", "f1_at_50", (task,)), Pool("0.75", "f1_at_75", (task,)))
        for task in _DETECTION
    },
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
