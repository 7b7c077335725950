"""Proposed labels compared with the true ones of a labelled image.

A box is right if a true object of its label has at least the asked IoU with it, and no box of a
higher confidence took this object; of a crowd any number is right. IoU is that of the masks where
both have one. A text is right if it equals a true one but for spaces, for questions
as VQA compares answers, or if its character error rate is at most the asked one. A text region is
right if it is so equal to a line of the true text that no region of a higher confidence took; its
place is not compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.annotate.dataset_files import Box
from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Record
from diptych_client.annotate.proposals import agreement, proposed, regions_of
from diptych_client.evaluation.dataset import LabelledImage, TrueObject
from diptych_client.evaluation.metrics.detection import encoded_mask, run_lengths
from diptych_client.evaluation.metrics.texts import character_edits, normalized, vqa_normalized
from diptych_client.evaluation.questionnaire import ObjectsTruth, TextsTruth
from diptych_client.evaluation.statistics import Floats
from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.matching import SAME_OBJECT_IOU
from diptych_client.results import Instance

Truth = ObjectsTruth | TextsTruth

NOT_FOUND = float("-inf")
_QUESTIONS = "visual_question_answering"
_PHRASES = ("phrase_grounding", "instance_segmentation")
_TEXTS = ("ocr", "ocr_with_regions", "region_description")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The least IoU of a right box or mask, and the largest character error rate of a text."""

    min_iou: float = SAME_OBJECT_IOU
    max_cer: float = 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """The confidence of each label of an image, and whether it is right; the score of each object.

    The score of an object is the best one of its boxes, accepted or not; `NOT_FOUND` without any.
    """

    confidences: tuple[float, ...]
    is_right: tuple[bool, ...]
    found_scores: tuple[float, ...] = ()


def truth_of(labelled: LabelledImage, job: Job) -> Truth | None:
    """Return the true labels for a job, or None if the image has none of its kind."""
    asked = job.parameters
    if job.task == _QUESTIONS:
        answers: list[str] = []
        for each in labelled.questions:
            if each.question.casefold() == (asked.question or "").casefold():
                answers += each.answers
        return TextsTruth(tuple(answers)) if answers else None
    if job.task == "captioning":
        return None if labelled.captions is None else TextsTruth(labelled.captions)
    if job.task in _TEXTS:
        is_of_region = labelled.region in (None, asked.region)
        return TextsTruth((labelled.text,)) if labelled.text is not None and is_of_region else None
    objects = labelled.objects
    if job.task in _PHRASES and labelled.phrases:
        objects = tuple(
            TrueObject(each.phrase, each.box_xyxy, each.segmentation)
            for each in labelled.phrases
            if each.box_xyxy is not None
        )
    if objects is None:
        return None
    labels = [*job.requested_labels(), *filter(None, [asked.phrase])]
    counted = {label.casefold() for label in labels}
    return ObjectsTruth(
        tuple(each for each in objects if not counted or each.label.casefold() in counted)
    )


def judge(records: Sequence[Record], truth: Truth, tolerance: Tolerance) -> Judged:
    """Compare the labels that a rule may accept with the true ones."""
    proposals = proposed(records, tolerance.min_iou)
    confidences = tuple(each.confidence for each in proposals)
    if isinstance(truth, TextsTruth):
        task = records[0].answer.task
        texts = [each.label for each in proposals if isinstance(each.label, str)]
        if regions_of(records) is not None:
            return Judged(confidences, _are_lines(texts, confidences, truth, tolerance))
        return Judged(confidences, tuple(_is_right(text, truth, task, tolerance) for text in texts))
    found = agreement(records, tolerance.min_iou, 0.0)
    place = (truth.objects, records[0].answer.image)
    overlaps = _overlaps(found.accepted, *place)
    is_right = _taken(overlaps, confidences, truth.objects, tolerance.min_iou)
    others = [box for _, box in found.differing]
    is_hit = np.concatenate([overlaps, _overlaps(others, *place)]) >= tolerance.min_iou
    scores = np.array([box.score for box in (*found.accepted, *others)])[:, None]
    best = np.where(is_hit, scores, NOT_FOUND).max(axis=0, initial=NOT_FOUND)
    is_counted = [not each.is_crowd for each in truth.objects]
    return Judged(confidences, is_right, tuple(best[is_counted].tolist()))


def _is_right(text: str, truth: TextsTruth, task: str, tolerance: Tolerance) -> bool:
    if task == _QUESTIONS:
        return vqa_normalized(text) in map(vqa_normalized, truth.texts)
    if normalized(text) in map(normalized, truth.texts):
        return True
    edits = [character_edits(each, text) for each in truth.texts if normalized(each)]
    return any(each.num_edits <= tolerance.max_cer * each.length for each in edits)


def _are_lines(
    texts: Sequence[str], confidences: Sequence[float], truth: TextsTruth, tolerance: Tolerance
) -> tuple[bool, ...]:
    """Return which regions took a line of the true text, the most confident region first."""
    free = list(chain.from_iterable(map(str.splitlines, truth.texts)))
    is_right = [False] * len(texts)
    for index in sorted(range(len(texts)), key=lambda index: -confidences[index]):
        for line in free:
            if _is_right(texts[index], TextsTruth((line,)), "ocr", tolerance):
                is_right[index] = True
                free.remove(line)
                break
    return tuple(is_right)


def _overlaps(boxes: Sequence[Box], objects: Sequence[TrueObject], image: ImageSize) -> Floats:
    """Return the IoU, (boxes, objects); -1 where the labels differ.

    A box without a label has that of every object.
    """
    if not boxes or not objects:
        return np.zeros((len(boxes), len(objects)))
    labels = np.array([each.label.casefold() for each in boxes], dtype=object)[:, None]
    names = np.array([each.label.casefold() for each in objects], dtype=object)
    is_crowd = [int(each.is_crowd) for each in objects]
    answered: Any = _xywh([each.box_xyxy for each in boxes])
    true: Any = _xywh([each.box_xyxy for each in objects])
    masks = [each.to_mask(image) for each in boxes if isinstance(each, Instance)]
    outlines = [each.segmentation for each in objects if each.segmentation is not None]
    if len(masks) == len(boxes) and len(outlines) == len(objects):
        answered = list(map(encoded_mask, masks))
        true = [run_lengths(each, image) for each in outlines]
    iou = np.asarray(coco_mask.iou(answered, true, is_crowd))
    return np.where((labels == names) | (labels == ""), iou, -1.0)


def _xywh(boxes: Sequence[BoxXyxy]) -> Floats:
    corners = np.asarray(boxes, dtype=np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _taken(
    overlaps: Floats, confidences: Sequence[float], objects: Sequence[TrueObject], min_iou: float
) -> tuple[bool, ...]:
    """Return which boxes took an object, the most confident box first."""
    free = overlaps.copy()
    is_right = [False] * len(confidences)
    for index in sorted(range(len(confidences)), key=lambda index: -confidences[index]):
        if (free[index] >= min_iou).any():
            is_right[index] = True
            taken = int(np.argmax(free[index]))
            if not objects[taken].is_crowd:
                free[:, taken] = -1
    return tuple(is_right)
