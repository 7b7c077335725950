"""Proposed labels compared with the true ones of a labelled image.

A box is right if a true object of its label has at least the requested IoU with it, and no box of a
higher confidence took this object; of a crowd any number is right. IoU is that of the masks where
both have one. A text is right if it equals a true one but for spaces, for questions as VQA compares
answers, or if its character error rate is at most the requested one. A text region is right if it
is so equal to a line of the true text that no region of a higher confidence took; its place is not
compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.evaluation.annotation.consensus import (
    Records,
    agreement,
    proposals_of,
    regions_of,
)
from diptych_client.evaluation.dataset import LabelledImage, TrueObject
from diptych_client.evaluation.job import Box, Job
from diptych_client.evaluation.objects import encoded_mask, run_lengths, xywh
from diptych_client.evaluation.questions import ObjectsTruth, TextsTruth
from diptych_client.evaluation.texts import character_edits, normalized, vqa_normalized
from diptych_client.geometry import ImageSize
from diptych_client.matching import SAME_OBJECT_IOU, Floats
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
class JudgedImage:
    """The confidence of each label of an image, and whether it is right; the score of each object.

    The score of an object is the best one of its boxes, accepted or not; `NOT_FOUND` without any.
    """

    confidences: tuple[float, ...]
    is_right: tuple[bool, ...]
    object_scores: tuple[float, ...] = ()


def truth_of(labelled: LabelledImage, job: Job) -> Truth | None:
    """Return the true labels for a job, or None if the image has none of its kind."""
    parameters = job.parameters
    if job.task == _QUESTIONS:
        answers: list[str] = []
        for question in labelled.questions:
            if question.question.casefold() == (parameters.question or "").casefold():
                answers += question.answers
        return TextsTruth(tuple(answers)) if answers else None
    if job.task == "captioning":
        return None if labelled.captions is None else TextsTruth(labelled.captions)
    if job.task in _TEXTS:
        if labelled.text is None or labelled.region not in (None, parameters.region):
            return None
        return TextsTruth((labelled.text,))
    objects = list(labelled.objects or ())
    if job.task in _PHRASES and labelled.phrases:
        objects = []
        for phrase in labelled.phrases:
            if phrase.box_xyxy is not None:
                objects.append(TrueObject(phrase.phrase, phrase.box_xyxy, phrase.segmentation))
    elif labelled.objects is None:
        return None
    labels = [*job.requested_labels(), *filter(None, [parameters.phrase])]
    counted = {label.casefold() for label in labels}
    if counted:
        objects = [true for true in objects if true.label.casefold() in counted]
    return ObjectsTruth(tuple(objects))


def judge_labels(records: Records, truth: Truth, tolerance: Tolerance) -> JudgedImage:
    """Compare the labels that a rule may accept with the true ones."""
    proposals = proposals_of(records, tolerance.min_iou)
    confidences = tuple(proposal.confidence for proposal in proposals)
    if isinstance(truth, TextsTruth):
        task = records[0].answer.task
        texts = [proposal.label for proposal in proposals if isinstance(proposal.label, str)]
        if regions_of(records) is not None:
            return JudgedImage(confidences, _are_lines(texts, confidences, truth, tolerance))
        is_right = tuple(_is_right_text(text, truth, task, tolerance) for text in texts)
        return JudgedImage(confidences, is_right)
    image = records[0].answer.image
    agreed = agreement(records, tolerance.min_iou, 0.0)
    overlaps = _overlaps(agreed.accepted, truth.objects, image)
    is_right = _take_objects(overlaps, confidences, truth.objects, tolerance.min_iou)
    others = [box for _, box in agreed.differing]
    all_overlaps = np.concatenate([overlaps, _overlaps(others, truth.objects, image)])
    scores = np.array([box.score for box in (*agreed.accepted, *others)])[:, None]
    hit_scores = np.where(all_overlaps >= tolerance.min_iou, scores, NOT_FOUND)
    object_scores = hit_scores.max(axis=0, initial=NOT_FOUND)
    is_counted = [not true.is_crowd for true in truth.objects]
    return JudgedImage(confidences, is_right, tuple(object_scores[is_counted].tolist()))


def _is_right_text(text: str, truth: TextsTruth, task: str, tolerance: Tolerance) -> bool:
    if task == _QUESTIONS:
        return vqa_normalized(text) in map(vqa_normalized, truth.texts)
    if normalized(text) in map(normalized, truth.texts):
        return True
    edits = [character_edits(true_text, text) for true_text in truth.texts if normalized(true_text)]
    return any(edit.num_edits <= tolerance.max_cer * edit.length for edit in edits)


def _are_lines(
    texts: Sequence[str], confidences: Sequence[float], truth: TextsTruth, tolerance: Tolerance
) -> tuple[bool, ...]:
    """Return which regions took a line of the true text, the most confident region first."""
    free_lines = list(chain.from_iterable(map(str.splitlines, truth.texts)))
    is_right = [False] * len(texts)
    for index in sorted(range(len(texts)), key=lambda index: -confidences[index]):
        for line in free_lines:
            if _is_right_text(texts[index], TextsTruth((line,)), "ocr", tolerance):
                is_right[index] = True
                free_lines.remove(line)
                break
    return tuple(is_right)


def _overlaps(boxes: Sequence[Box], objects: Sequence[TrueObject], image: ImageSize) -> Floats:
    """Return the IoU, (boxes, objects); -1 where the labels differ.

    A box without a label has that of every object.
    """
    if not boxes or not objects:
        return np.zeros((len(boxes), len(objects)))
    labels = np.array([box.label.casefold() for box in boxes], dtype=object)[:, None]
    names = np.array([true.label.casefold() for true in objects], dtype=object)
    answered: Any = [xywh(box.box_xyxy) for box in boxes]
    expected: Any = [xywh(true.box_xyxy) for true in objects]
    instances = [box for box in boxes if isinstance(box, Instance)]
    outlines = [true.segmentation for true in objects if true.segmentation is not None]
    if len(instances) == len(boxes) and len(outlines) == len(objects):
        answered = [encoded_mask(instance.to_mask(image)) for instance in instances]
        expected = [run_lengths(outline, image) for outline in outlines]
    is_crowd = [int(true.is_crowd) for true in objects]
    iou = np.asarray(coco_mask.iou(answered, expected, is_crowd))
    return np.where((labels == names) | (labels == ""), iou, -1.0)


def _take_objects(
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
