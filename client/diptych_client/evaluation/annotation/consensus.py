"""Labels that one model or two agreeing ones propose, each with a confidence; a review list.

Two boxes agree if they have the same label, an IoU of at least 0.5, or more if requested, and both
at least the requested score, unless a box of another label that one model alone found lies there.
Beside the dataset are

    review.json         COCO: the other boxes, each with `review: true` and its `model`
    label_studio.json   Label Studio's tasks: the images of review.json, with the whole answer of
                        each model as a prediction

The confidence of a box or a text region is its score; of a box of two models the lower score; of a
text of two models their similarity, 1 - normalized edit distance. A text of one model has none: it
counts as 1. The regions of two models are a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from diptych_client.evaluation.formats.annotations import coco_of_records, label_studio_task
from diptych_client.evaluation.formats.writing import DatasetFormat, class_indices, write_dataset
from diptych_client.evaluation.job import Box, Job, Record
from diptych_client.long_runs import Outputs
from diptych_client.matching import SAME_OBJECT_IOU, greedy_pairs, pairwise_iou
from diptych_client.results import Result, TextRegion, TextRegionsResult, text_of

Records = tuple[Record, ...]  # the answers to one image, one of each model
NEVER = float("inf")  # a confidence that no label has


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answers to one image: the accepted boxes with confidences, and the others by model."""

    records: Records
    accepted: tuple[Box, ...]
    confidences: tuple[float, ...]
    differing: tuple[tuple[str, Box], ...]

    def record(self, boxes: Sequence[Box]) -> Record:
        first = self.records[0]
        kind: Any = type(first.answer.result)  # its boxes are of one kind
        result: Result = kind(tuple(boxes))
        return replace(first, answer=replace(first.answer, result=result))


def agreement(records: Records, min_iou: float, min_score: float) -> Agreement:
    """Return the boxes of one model with at least a score, or those on which two models agree.

    Of two agreeing boxes the higher score is accepted.
    """
    boxes = list(chain.from_iterable(record.boxes for record in records))
    num_first = len(records[0].boxes)
    if len(records) == 1:
        pairs = [(index, index) for index, box in enumerate(boxes) if box.score >= min_score]
    else:
        pairs = _agreeing_pairs(boxes, num_first, min_iou, min_score)
    accepted = tuple(max(boxes[i], boxes[j], key=lambda box: box.score) for i, j in pairs)
    confidences = tuple(min(boxes[i].score, boxes[j].score) for i, j in pairs)
    agreeing = set(chain.from_iterable(pairs))
    differing = []
    for index, box in enumerate(boxes):
        if index not in agreeing:
            record = records[0] if index < num_first else records[1]
            differing.append((record.answer.model, box))
    return Agreement(records, accepted, confidences, tuple(differing))


def _agreeing_pairs(
    boxes: Sequence[Box], num_first: int, min_iou: float, min_score: float
) -> list[tuple[int, int]]:
    places = [box.box_xyxy for box in boxes]
    iou = pairwise_iou(places, places)
    labels = np.array([box.label.casefold() for box in boxes], dtype=object)
    is_same = labels[:, None] == labels
    between = np.where(is_same, iou, -1.0)[:num_first, num_first:]
    nearby = greedy_pairs(between, min(min_iou, SAME_OBJECT_IOU))
    pairs = [(i, num_first + j) for i, j in nearby]
    is_alone = np.ones(len(boxes), dtype=bool)
    is_alone[list(chain.from_iterable(pairs))] = False
    is_disputed = ((iou >= SAME_OBJECT_IOU) & ~is_same & is_alone).any(axis=1)
    agreeing = []
    for i, j in sorted(pairs):
        is_sure = min(boxes[i].score, boxes[j].score) >= min_score
        if iou[i, j] >= min_iou and is_sure and not is_disputed[[i, j]].any():
            agreeing.append((i, j))
    return agreeing


def write_consensus(
    dataset_format: DatasetFormat,
    outputs: Outputs,
    folder: Path,
    agreements: Sequence[Agreement],
    job: Job,
) -> Path:
    """Write the accepted boxes and the review list; return the path of the dataset's main file."""
    accepted = [image.record(image.accepted) for image in agreements]
    dataset = write_dataset(dataset_format, outputs, folder, accepted, job)
    write_review(outputs, "", [image for image in agreements if image.differing], job)
    return dataset


def write_review(outputs: Outputs, prefix: str, agreements: Sequence[Agreement], job: Job) -> None:
    models: list[str] = []
    records = []
    for image in agreements:
        models += [model for model, _ in image.differing]
        records.append(image.record([box for _, box in image.differing]))
    document = coco_of_records(records, class_indices(records, job.requested_labels()))
    for annotation, model in zip(document["annotations"], models, strict=True):
        annotation.update(review=True, model=model)
    outputs.write(outputs.folder / f"{prefix}review.json", json.dumps(document))
    tasks = [label_studio_task(image.records) for image in agreements]
    outputs.write(outputs.folder / f"{prefix}label_studio.json", json.dumps(tasks))


def has_text(record: Record) -> bool:
    return text_of(record.answer.result) is not None


def regions_of(records: Records) -> tuple[TextRegion, ...] | None:
    """Return the text regions of one model; None for other labels, and those of two models."""
    result = records[0].answer.result
    is_alone = len(records) == 1
    return result.text_regions if is_alone and isinstance(result, TextRegionsResult) else None


def confidences_of(records: Records, min_iou: float) -> list[float]:
    """Return the confidence of each label of an image that a rule may accept."""
    if not has_text(records[0]):
        return list(agreement(records, min_iou, 0.0).confidences)
    if (regions := regions_of(records)) is not None:
        return [region.score for region in regions]
    from rapidfuzz.distance import Levenshtein  # the extra `evaluate` has it

    first, *others = [text_of(record.answer.result) or "" for record in records]
    similarities = [Levenshtein.normalized_similarity(first, other) for other in others]
    return [min(similarities, default=1.0)]
