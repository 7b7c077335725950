"""Label errors: how much the answers of models contradict the labels of a dataset, worst first.

The suspicion of a label, or of an object without one, is the mean over the models of

    missing      object without a label: its score, times 1 - its largest IoU with a label
    other class  answer of another class at the place of a label: its score
    moved        answer of the label's class, IoU < 0.75: its score, less from IoU 0.5 on
    extra        label without an answer: the share of its class's labels that the model finds

A model that confirms a label adds 0; one that does not know such images counts a tenth. An image is
as suspect as its worst label. ObjectLab scores the first three, as overlooked, swapped and badly
located (Tkachenko, Thyagarajan and Mueller, 2023, arXiv 2309.00832).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.datasets.dataset import Dataset, LabelledImage, TrueObject
from diptych_client.datasets.formats.writing import Target
from diptych_client.datasets.long_runs import Outputs, RunError
from diptych_client.datasets.records import Job, Record
from diptych_client.geometry import BoxXyxy
from diptych_client.json_values import to_json
from diptych_client.requests import DEFAULT_OPTIONS, TaskParameters
from diptych_client.results import Answer, Detection, DetectionsResult
from diptych_client.tools.consensus import Agreement, write_review
from diptych_client.tools.evaluator import Evaluator, Measure, RankedSample
from diptych_client.tools.matching import SAME_OBJECT_IOU, Kind, LabelledBox, match, pairwise_iou
from diptych_client.tools.objects import ObjectsMeasure, xywh
from diptych_client.tools.questions import ObjectsTruth, Sample

FILES = ("ranking.jsonl", "review.json", "label_studio.json")
_KINDS: Mapping[Kind, str] = {  # key: kind of an answer; value: kind of the label error
    "extra": "missing",
    "wrong class": "other class",
    "loosely placed": "moved",
    "badly placed": "moved",
    "missed": "extra",
}
_SUGGESTED = "suggested: "  # before the class of a suggestion, which is no label
_UNFAMILIAR_WEIGHT = 0.1
_UNSCORED = 0.5  # score of an object whose model gives none
_LABELS = "labels"  # stands for a model
_ROUNDING_PX = 0.05  # CVAT writes two decimals


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label or an object without one, and the surest answer of the models against it."""

    kind: str
    suspicion: float
    label: LabelledBox | None
    suggested: Detection | None
    model: str

    def is_same(self, other: "Suspect") -> bool:
        """Return True if both are the same label, or one object without a label."""
        if self.label is not None or self.suggested is None or other.suggested is None:
            return self.label is other.label
        iou = pairwise_iou([self.suggested.box_xyxy], [other.suggested.box_xyxy])
        return other.label is None and bool(iou[0, 0] >= SAME_OBJECT_IOU)


def largest_overlap(box: BoxXyxy, labels: Sequence[LabelledBox]) -> float:
    """Return the largest IoU with a label, or the share of the box that is in a crowd."""
    places = [xywh(label.box_xyxy) for label in labels]
    are_crowds = [label.is_ignored for label in labels]
    return float(np.max(coco_mask.iou([xywh(box)], places, are_crowds), initial=0.0))


def find_contradictions(
    labels: Sequence[LabelledBox], answer: Answer, recalls: Mapping[str, float]
) -> Iterator[Suspect]:
    """Yield what one model says against the labels of an image."""
    assert isinstance(answer.result, DetectionsResult)
    detections = answer.result.detections
    boxes = [LabelledBox(detection.label, detection.box_xyxy) for detection in detections]
    weight = _UNFAMILIAR_WEIGHT if answer.is_unfamiliar else 1.0
    for pair in match(labels, boxes):
        label = None if pair.truth is None else labels[pair.truth]
        suggested = None if pair.answer is None else detections[pair.answer]
        if suggested is None:
            assert label is not None
            suspicion = recalls[label.label]
        else:
            confirmed = pair.credit
            if label is None:
                confirmed = largest_overlap(suggested.box_xyxy, labels)
            suspicion = _UNSCORED if suggested.score is None else suggested.score
            suspicion *= 1 - confirmed
        if pair.kind != "right" and suspicion > 0:
            suspicion *= weight
            yield Suspect(_KINDS[pair.kind], suspicion, label, suggested, answer.model)


def merge_suspects(by_model: Sequence[Sequence[Suspect]]) -> list[Suspect]:
    """Return each suspect once, with the mean suspicion of the models, the worst first."""
    merged: list[Suspect] = []
    for suspect in _worst_first(chain(*by_model)):
        if any(suspect.is_same(other) for other in merged):
            continue
        total = 0.0
        for suspects in by_model:
            same = [other.suspicion for other in suspects if suspect.is_same(other)]
            total += max(same, default=0.0)
        merged.append(replace(suspect, suspicion=total / len(by_model)))
    return _worst_first(merged)


def _worst_first(suspects: Iterable[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda suspect: suspect.suspicion, reverse=True)


@dataclass(frozen=True, slots=True)
class Reviewer:
    """The answers of all models to the images of a dataset, each a sample."""

    evaluator: Evaluator
    samples: Sequence[Sample]
    images: Sequence[LabelledImage]

    def ranking(self) -> list[tuple[RankedSample, list[Suspect]]]:
        """Return the images that every model answered, the most suspect first."""
        recalls = {
            model: find_recalls(measure) for model, measure in self.evaluator.measures.items()
        }
        ranking = []
        for index, sample in enumerate(self.samples):
            answers = self._answers(sample)
            if answers and isinstance(sample.truth, ObjectsTruth):
                objects = sample.truth.objects
                labels = [LabelledBox(true.label, true.box_xyxy, true.is_crowd) for true in objects]
                by_model = []
                for answer in answers:
                    by_model.append(
                        list(find_contradictions(labels, answer, recalls[answer.model]))
                    )
                suspects = merge_suspects(by_model)
                kinds = {suspect.kind for suspect in suspects}
                if any(answer.is_unfamiliar for answer in answers):
                    kinds.add("unfamiliar")
                suspicion = max((suspect.suspicion for suspect in suspects), default=0.0)
                sample_rank = RankedSample(index, suspicion, 0.0, suspicion, frozenset(kinds))
                ranking.append((sample_rank, suspects))
        return sorted(ranking, key=lambda entry: entry[0].error, reverse=True)

    def _answers(self, sample: Sample) -> list[Answer]:
        """Return the answer of each model, its objects of the dataset's classes, or none."""
        names = self.evaluator.names
        answers = []
        for model in self.evaluator.models:
            prediction = self.evaluator.log.prediction(sample, model)
            parts = self.evaluator.log.answers(sample, model)
            if prediction is None or parts is None:
                return []
            detections = []
            for item in prediction.items:
                if names.label(item) in names.classes:
                    detections.append(Detection(item.box_xyxy, names.label(item), item.score))
            answers.append(
                replace(parts[0], model=model, result=DetectionsResult(tuple(detections)))
            )
        return answers

    def write(self, outputs: Outputs, number: int) -> tuple[RankedSample, ...]:
        """Write the ranking, and the first images for a person; return their ranks."""
        ranking = self.ranking()
        rows = []
        for ranked, suspects in ranking:
            row = {"suspicion": ranked.error, "kinds": sorted(ranked.kinds)}
            image = self.samples[ranked.sample_index].image.name
            rows.append({"image": image, **row, "labels": to_json(suspects)})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        outputs.write(outputs.folder / FILES[0], lines)
        labels = TaskParameters(labels=self.evaluator.names.classes)
        job = Job(self.evaluator.log.task, _LABELS, labels, DEFAULT_OPTIONS)
        first = ranking[:number]
        agreements = [self._agreement(ranked, suspects) for ranked, suspects in first if suspects]
        write_review(Target("coco", outputs, outputs.folder, job), agreements)
        return tuple(ranked for ranked, _ in first)

    def _agreement(self, ranked: RankedSample, suspects: Iterable[Suspect]) -> Agreement:
        """Return all labels of an image but crowds, and the suggestions about them."""
        sample = self.samples[ranked.sample_index]
        objects = self.images[ranked.sample_index].objects or ()
        labels = [Detection(true.box_xyxy, true.label, 1) for true in objects if not true.is_crowd]
        boxes = [(_LABELS, label) for label in labels]
        for suspect in suspects:
            if suspect.suggested is not None:
                label = f"{_SUGGESTED}{suspect.suggested.label}"
                boxes.append((suspect.model, replace(suspect.suggested, label=label)))
        answers = self._answers(sample)
        labelled = replace(answers[0], model=_LABELS, result=DetectionsResult(tuple(labels)))
        records = [Record(sample.image, answer) for answer in (labelled, *answers)]
        return Agreement(tuple(records), (), (), tuple(boxes))


def find_recalls(measure: Measure) -> dict[str, float]:
    """Return the share of the labels of each class that a model finds."""
    assert isinstance(measure, ObjectsMeasure)
    recalls = {}
    for label, matches in zip(measure.names.classes, measure.matches("bbox"), strict=True):
        recalls[label] = float(matches.is_right[0].sum() / max(matches.num_truths.sum(), 1))
    return recalls


def merge_labels(dataset: Dataset, reviewed: Dataset) -> tuple[list[LabelledImage], int]:
    """Return the images with a person's labels, and the number of changes; or raise `RunError`."""
    reviewed_objects = {labelled.image.name: labelled.objects for labelled in reviewed.images}
    names = [labelled.image.name for labelled in dataset.images]
    if reviewed_objects.keys().isdisjoint(names):
        names_differ = f"it names {next(iter(reviewed_objects))!r}, the dataset {names[0]!r}"
        raise RunError(f"{reviewed.name} has no image of the dataset: {names_differ}")
    images = []
    num_changed = 0
    for labelled in dataset.images:
        merged = labelled
        objects = reviewed_objects.get(labelled.image.name)
        if objects is not None:
            merged = replace(labelled, objects=_merge_objects(labelled.objects or (), objects))
        num_changed += merged != labelled
        images.append(merged)
    return images, num_changed


def _merge_objects(
    objects: Iterable[TrueObject], reviewed: Iterable[TrueObject]
) -> tuple[TrueObject, ...]:
    """Return a person's objects; crowds and unchanged ones stay as they were, with their masks."""
    changed = [true for true in reviewed if not true.label.startswith(_SUGGESTED)]
    merged = []
    for true in objects:
        for other in changed:
            distances = np.subtract(other.box_xyxy, true.box_xyxy)
            if other.label == true.label and np.abs(distances).max() <= _ROUNDING_PX:
                changed.remove(other)
                merged.append(true)
                break
        else:
            merged += [true] * true.is_crowd
    return (*merged, *changed)


def to_row(labelled: LabelledImage) -> dict[str, Any]:
    """Return all labels of an image as an object of JSON lines."""
    row = to_json(labelled) | {"image": labelled.image.name}
    for true in row.get("objects", ()):
        true["iscrowd"] = true.pop("is_crowd")
    for phrase in row["phrases"]:
        phrase["phrase"] = phrase.pop("label")
    return dict(row)
