"""Labels that one model or two agreeing ones propose, each with a confidence; a review list.

Two boxes agree if they have the same label, an IoU of at least 0.5, or more if requested, and both
at least the requested score, unless a box of another label that one model alone found lies there.
Beside the dataset are

    review.json         COCO: the other boxes, each with `review: true` and its `model`
    label_studio.json   Label Studio's tasks: the images of review.json, with the whole answer of
                        each model as a prediction
    review.jsonl        instead of both: {"image": name, "answers": […]} where a text is left

The confidence of a box or a text region is its score; of a box of two models the lower score; of a
text of two models their similarity, 1 - normalized edit distance. A text of one model has none: it
counts as 1. The regions of two models are a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from diptych_client.evaluation.formats.coco import coco_of_records
from diptych_client.evaluation.formats.label_studio import label_studio_task
from diptych_client.evaluation.formats.writing import Target, class_indices, write_dataset
from diptych_client.evaluation.questions import Record
from diptych_client.matching import SAME_OBJECT_IOU, greedy_pairs, pairwise_iou
from diptych_client.results import Item, TextRegionsResult, TextResult, text_of
from diptych_client.transports.messages import to_json

Records = tuple[Record, ...]  # the answers to one image, one of each model
Label = Any  # a box or a text region, or a result that is one text
NEVER = float("inf")  # a confidence that no label has


@dataclass(frozen=True, slots=True)
class Agreement:
    """The answers to one image: the accepted labels with confidences, and the others by model."""

    records: Records
    accepted: tuple[Label, ...]
    confidences: tuple[float, ...]
    differing: tuple[tuple[str, Label], ...]

    @property
    def name(self) -> str:
        return self.records[0].image.name

    def record(self, labels: Sequence[Label]) -> Record:
        first = self.records[0]
        if len(labels) == 1 and isinstance(labels[0], TextResult | TextRegionsResult):
            result = labels[0]
        else:
            kind: Any = type(first.answer.result)  # its labels are of one kind
            result = kind(tuple(labels))
        return replace(first, answer=replace(first.answer, result=result))


def is_whole(records: Records) -> bool:
    """Return True if the answers are one label, a text."""
    result = records[0].answer.result
    if isinstance(result, TextRegionsResult):
        return len(records) > 1
    return isinstance(result, TextResult)


def agreement(records: Records, min_iou: float, min_score: float) -> Agreement:
    """Return the labels with at least a confidence.

    Of two agreeing boxes the higher score is accepted.
    """
    first = records[0].answer
    if is_whole(records):
        similarity = _similarity(records)
        if similarity >= min_score:
            return Agreement(records, (first.result,), (similarity,), ())
        return Agreement(records, (), (), ((first.model, first.result),))
    by_model: list[tuple[str, Item]] = []
    for record in records:
        by_model += [(record.answer.model, label) for label in record.items]
    labels = list(map(itemgetter(1), by_model))
    if len(records) == 1:
        pairs = [(index, index) for index, label in enumerate(labels) if label.score >= min_score]
    else:
        pairs = _agreeing_pairs(labels, len(records[0].items), min_iou, min_score)
    accepted = []
    confidences = []
    agreeing = set[int]()
    for i, j in pairs:
        accepted.append(max(labels[i], labels[j], key=attrgetter("score")))
        confidences.append(min(labels[i].score, labels[j].score))
        agreeing |= {i, j}
    others = sorted(set(range(len(labels))) - agreeing)
    differing = map(by_model.__getitem__, others)
    return Agreement(records, tuple(accepted), tuple(confidences), tuple(differing))


def _similarity(records: Records) -> float:
    if len(records) == 1:
        return 1.0
    from rapidfuzz.distance import Levenshtein  # the extra `evaluate` has it

    first, second = (text_of(record.answer.result) or "" for record in records)
    return Levenshtein.normalized_similarity(first, second)


def _agreeing_pairs(
    boxes: Sequence[Label], num_first: int, min_iou: float, min_score: float
) -> list[tuple[int, int]]:
    places = list(map(attrgetter("box_xyxy"), boxes))
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


def write_consensus(target: Target, agreements: Sequence[Agreement]) -> tuple[Path, Path]:
    """Write the accepted labels and the review list; return the paths of both."""
    accepted = []
    for image in agreements:
        if image.accepted or not is_whole(image.records):
            accepted.append(image.record(image.accepted))
    dataset = write_dataset(target, accepted)
    left = list(filter(attrgetter("differing"), agreements))
    return dataset, write_review(target, "review", left)


def write_review(target: Target, name: str, agreements: Sequence[Agreement]) -> Path:
    """Write the labels that are left to a person; return the path of their list."""
    outputs = target.outputs
    is_text = False
    for record in chain.from_iterable(map(attrgetter("records"), agreements)):
        is_text |= isinstance(record.answer.result, TextResult | TextRegionsResult)
    if is_text or target.dataset_format == "jsonl":
        rows = []
        for image in agreements:
            answers = to_json(list(map(attrgetter("answer"), image.records)))
            rows.append({"image": image.name, "answers": answers})
        return outputs.write_lines(outputs.folder / f"{name}.jsonl", rows)
    models: list[str] = []
    records = []
    for image in agreements:
        models += map(itemgetter(0), image.differing)
        records.append(image.record(list(map(itemgetter(1), image.differing))))
    document = coco_of_records(records, class_indices(records, target.job.requested_labels()))
    for annotation, model in zip(document["annotations"], models, strict=True):
        annotation.update(review=True, model=model)
    prefix = "" if name == "review" else f"{name}_"
    tasks = list(map(label_studio_task, map(attrgetter("records"), agreements)))
    outputs.write(outputs.folder / f"{prefix}label_studio.json", json.dumps(tasks))
    return outputs.write(outputs.folder / f"{prefix}review.json", json.dumps(document))
