"""Boxes that one model or two agreeing ones propose, each with a confidence; a review list.

Two boxes agree if they have the same label, an IoU of at least 0.5, or more if requested, and both
at least the least score of the label, unless a box of another label that one model alone found lies
there. No box of an image is accepted that is unlike those that a model was calibrated on.

The confidence of a box is its score, 0 without one; of a box of two models the lower score.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diptych_client.datasets.formats.coco import coco_of_records
from diptych_client.datasets.formats.label_studio import label_studio_task
from diptych_client.datasets.formats.writing import (
    Target,
    class_indices,
    remove_image,
    write_dataset,
)
from diptych_client.datasets.records import Record
from diptych_client.results import Detection, Instance
from diptych_client.tools.matching import SAME_OBJECT_IOU, greedy_pairs, pairwise_iou

Records = tuple[Record, ...]  # the answers to one image, one of each model
Box = Detection | Instance
MinScores = Mapping[str, float]  # by label in lower case; `ANY` is any other label
ANY = ""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answers to one image: the accepted boxes with confidences, and the others by model."""

    records: Records
    accepted: tuple[Box, ...]
    confidences: tuple[float, ...]
    differing: tuple[tuple[str, Box], ...]
    is_unlike: bool = False  # unlike the images that a model was calibrated on

    def record(self, boxes: Sequence[Box]) -> Record:
        first = self.records[0]
        kind: Any = type(first.answer.result)  # its boxes are of one kind
        return replace(first, answer=replace(first.answer, result=kind(tuple(boxes))))


def find_agreement(records: Records, min_iou: float, min_scores: MinScores) -> Agreement:
    """Return the boxes with at least the score of their label; of two agreeing ones the surer."""
    boxes: list[Any] = []
    models: list[str] = []
    for record in records:
        boxes += record.items
        models += [record.answer.model] * len(record.items)
    if any(record.answer.is_unfamiliar for record in records):
        return Agreement(records, (), (), tuple(zip(models, boxes, strict=True)), is_unlike=True)
    if len(records) == 1:
        pairs = [(index, index) for index in range(len(boxes))]
    else:
        pairs = _agreeing_pairs(boxes, len(records[0].items), min_iou)
    accepted = []
    confidences = []
    agreeing = set[int]()
    for i, j in pairs:
        confidence = min(boxes[i].rank, boxes[j].rank)
        if confidence >= min_scores.get(boxes[i].label.casefold(), min_scores.get(ANY, math.inf)):
            accepted.append(max(boxes[i], boxes[j], key=lambda item: item.rank))
            confidences.append(confidence)
            agreeing |= {i, j}
    differing = []
    for index, box in enumerate(boxes):
        if index not in agreeing:
            differing.append((models[index], box))
    return Agreement(records, tuple(accepted), tuple(confidences), tuple(differing))


def _agreeing_pairs(boxes: Sequence[Box], num_first: int, min_iou: float) -> list[tuple[int, int]]:
    boxes_xyxy = [box.box_xyxy for box in boxes]
    iou = pairwise_iou(boxes_xyxy, boxes_xyxy)
    labels = np.array([box.label.casefold() for box in boxes], dtype=object)
    is_same = labels[:, None] == labels
    between = np.where(is_same, iou, -1.0)[:num_first, num_first:]
    nearby = greedy_pairs(between, min(min_iou, SAME_OBJECT_IOU))
    pairs = [(i, num_first + j) for i, j in nearby]
    is_alone = np.ones(len(boxes), dtype=bool)
    for i, j in pairs:
        is_alone[[i, j]] = False
    is_disputed = ((iou >= SAME_OBJECT_IOU) & ~is_same & is_alone).any(axis=1)
    agreeing = []
    for i, j in sorted(pairs):
        if iou[i, j] >= min_iou and not is_disputed[[i, j]].any():
            agreeing.append((i, j))
    return agreeing


def write_consensus(target: Target, agreements: Sequence[Agreement]) -> tuple[Path, str]:
    """Write accepted boxes and review list; return the path of the dataset, and a note on both."""
    accepted = []
    left = []
    for image in agreements:
        if image.is_unlike:
            remove_image(target, image.records[0].image.name)
        else:
            accepted.append(image.record(image.accepted))
        if image.differing or image.is_unlike:
            left.append(image)
    dataset = write_dataset(target, accepted)
    review = write_review(target, left)
    note = f"{len(left)} images are to be reviewed, see {review}"
    if num_unlike := len(agreements) - len(accepted):
        reason = "unlike those that the models were calibrated on: no box of them is accepted"
        note += f"; {num_unlike} of them are {reason}"
    return dataset, note


def write_review(target: Target, agreements: Sequence[Agreement]) -> Path:
    """Write the boxes that are left to a person; return the path of their list."""
    outputs = target.outputs
    models: list[str] = []
    records = []
    for image in agreements:
        boxes = []
        for model, box in image.differing:
            models.append(model)
            boxes.append(box)
        records.append(image.record(boxes))
    document = coco_of_records(records, class_indices(records, target.job.requested_labels()))
    for annotation, model in zip(document["annotations"], models, strict=True):
        annotation.update(review=True, model=model)
    tasks = [label_studio_task(image.records) for image in agreements]
    outputs.write(outputs.folder / "label_studio.json", json.dumps(tasks))
    return outputs.write(outputs.folder / "review.json", json.dumps(document))
