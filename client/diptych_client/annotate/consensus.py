"""Labels that two models agree on, or of which one model is sure, and a review list of the rest.

Two boxes agree if they have the same label, an IoU of at least 0.5, or more if asked, and both at
least the asked score, unless a box of another label that one model alone found lies there. The
dataset has the agreed boxes of every image, and beside it are

    review.json         COCO: the other boxes, each with `review: true` and its `model`
    label_studio.json   Label Studio's tasks (labelstud.io, "Import pre-annotations"): the images of
                        review.json, with the whole answer of each model as a prediction; the
                        controls' names are `label` and `image`
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from diptych_client.annotate.dataset_files import (
    Box,
    DatasetFormat,
    boxes_of,
    class_indices,
    class_name,
    coco_document,
    joined_rings,
    write_dataset,
)
from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Record
from diptych_client.geometry import ImageSize
from diptych_client.long_runs import Outputs
from diptych_client.matching import SAME_OBJECT_IOU, greedy_pairs, pairwise_iou
from diptych_client.results import Instance, Result

# Label Studio's local storage, relative to its document root
_LOCAL_FILES = "/data/local-files/?d="


@dataclass(frozen=True, slots=True)
class AgreementRule:
    """Minimum IoU of two boxes with the same label that agree, and minimum score of both."""

    min_iou: float = SAME_OBJECT_IOU
    min_score: float = 0.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answers to one image: the accepted boxes, and the others by model.

    The confidence of an accepted box is the lowest score of it.
    """

    records: tuple[Record, ...]
    accepted: tuple[Box, ...]
    confidences: tuple[float, ...]
    differing: tuple[tuple[str, Box], ...]

    def record(self, boxes: Sequence[Box]) -> Record:
        """Return the first record with these boxes as its answer."""
        first = self.records[0]
        kind: Any = type(first.answer.result)  # its boxes are of one kind
        result: Result = kind(tuple(boxes))
        return replace(first, answer=replace(first.answer, result=result))


def agree(first: Record, second: Record, rule: AgreementRule) -> Agreement:
    """Compare two answers to the same image; of two agreeing boxes the higher score is accepted."""
    a = boxes_of(first.answer.result)
    b = boxes_of(second.answer.result)
    boxes = (*a, *b)
    accepted = _agreed_pairs(boxes, len(a), rule)
    agreed = set(chain.from_iterable(accepted))
    better = tuple(max(boxes[i], boxes[j], key=lambda box: box.score) for i, j in accepted)
    confidences = tuple(min(boxes[i].score, boxes[j].score) for i, j in accepted)
    models = [first.answer.model] * len(a) + [second.answer.model] * len(b)
    named = enumerate(zip(models, boxes, strict=True))
    differing = tuple(model_and_box for index, model_and_box in named if index not in agreed)
    return Agreement((first, second), better, confidences, differing)


def alone(record: Record, min_score: float) -> Agreement:
    """Accept the boxes of one model that have at least a score."""
    boxes = boxes_of(record.answer.result)
    accepted = tuple(box for box in boxes if box.score >= min_score)
    rest = tuple((record.answer.model, box) for box in boxes if box.score < min_score)
    return Agreement((record,), accepted, tuple(box.score for box in accepted), rest)


def _agreed_pairs(
    boxes: Sequence[Box], num_first: int, rule: AgreementRule
) -> list[tuple[int, int]]:
    """Return the agreeing pairs of one of the first boxes and one of the others, by index."""
    places = [each.box_xyxy for each in boxes]
    iou = pairwise_iou(places, places)
    labels = np.array([each.label.casefold() for each in boxes], dtype=object)
    same = labels[:, None] == labels
    between = np.where(same, iou, -1.0)[:num_first, num_first:]
    found = greedy_pairs(between, min(rule.min_iou, SAME_OBJECT_IOU))
    pairs = [(i, num_first + j) for i, j in found]
    is_alone = np.ones(len(boxes), dtype=bool)
    is_alone[list(chain.from_iterable(pairs))] = False
    is_disputed = ((iou >= SAME_OBJECT_IOU) & ~same & is_alone).any(axis=1)
    return sorted(
        (i, j)
        for i, j in pairs
        if iou[i, j] >= rule.min_iou
        and min(boxes[i].score, boxes[j].score) >= rule.min_score
        and not is_disputed[[i, j]].any()
    )


def write_consensus(
    dataset_format: DatasetFormat,
    outputs: Outputs,
    folder: Path,
    agreements: Sequence[Agreement],
    job: Job,
) -> Path:
    """Write the accepted boxes and the review list; return the path of the dataset's main file."""
    accepted = [each.record(each.accepted) for each in agreements]
    dataset = write_dataset(dataset_format, outputs, folder, accepted, job)
    review = [each for each in agreements if each.differing]
    write_review(outputs, "", review, job)
    return dataset


def write_review(outputs: Outputs, prefix: str, review: Sequence[Agreement], job: Job) -> None:
    """Write the differing boxes of images for review, as COCO and as Label Studio's tasks."""
    models: list[str] = []
    records = []
    for each in review:
        models += [model for model, _ in each.differing]
        records.append(each.record([box for _, box in each.differing]))
    document = coco_document(records, class_indices(records, job.requested_labels()))
    for annotation, model in zip(document["annotations"], models, strict=True):
        annotation.update(review=True, model=model)
    outputs.write(outputs.folder / f"{prefix}review.json", json.dumps(document))
    tasks = [_label_studio_task(each) for each in review]
    outputs.write(outputs.folder / f"{prefix}label_studio.json", json.dumps(tasks))


def _label_studio_task(agreement: Agreement) -> dict[str, Any]:
    predictions = []
    for record in agreement.records:
        answer = record.answer
        regions = [_label_studio_region(box, answer.image) for box in boxes_of(answer.result)]
        predictions.append({"model_version": answer.model, "result": regions})
    image = _LOCAL_FILES + quote(agreement.records[0].image.name)
    return {"data": {"image": image}, "predictions": predictions}


def _label_studio_region(box: Box, image: ImageSize) -> dict[str, Any]:
    """Return a region with its place in percent of the image's sides."""
    to_x = 100 / image.width
    to_y = 100 / image.height
    if isinstance(box, Instance) and box.polygons_xy:
        kind = "polygonlabels"
        points = [[x * to_x, y * to_y] for x, y in joined_rings(box.polygons_xy)]
        place: dict[str, Any] = {"points": points}
    else:
        kind = "rectanglelabels"
        x1, y1, x2, y2 = box.box_xyxy
        place = {"x": x1 * to_x, "y": y1 * to_y, "rotation": 0}
        place |= {"width": (x2 - x1) * to_x, "height": (y2 - y1) * to_y}
    return {
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": box.score,
        "value": {**place, kind: [class_name(box)]},
    }
