"""Objects: AP of boxes and masks, precision and recall, kinds of error, confusion matrix."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych_client.evaluation.answer_log import Prediction
from diptych_client.evaluation.calibration import CalibrationGap, ScoredAnswers
from diptych_client.evaluation.metrics.detection import (
    CocoScores,
    IouType,
    ResampledPrecision,
    answer_row,
    truth_row,
)
from diptych_client.evaluation.metrics.outcome import Confusion, Curve, Details, Outcome
from diptych_client.evaluation.questionnaire import ClassNames, ObjectsTruth, Truth
from diptych_client.evaluation.statistics import Metric, Ratio
from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.matching import LabelledBox, match
from diptych_client.results import Instance, box_of

NONE = "none"  # no true object, or no answer
_SIZES = ("small", "medium", "large")  # COCO's: below 32, below 96 and from 96 pixels squared
_UNKNOWN = "other label"  # answered, not a class of the dataset
_MAX_POINTS = 200  # points per curve of the report


@dataclass(slots=True)
class ObjectsMeasure:
    """One model's objects."""

    names: ClassNames
    by_size: bool = False  # metrics of each size, too
    sizes: list[ImageSize] = field(default_factory=list)
    truths: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    # right, answered, true; of each sample
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    # size of a true object as a share of the image's side, and whether it was found
    found: list[tuple[float, bool]] = field(default_factory=list)
    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    has_masks: bool = True
    is_calibrated: bool = False
    _scores: dict[IouType, CocoScores] = field(default_factory=dict)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, ObjectsTruth)
        image = prediction.image
        self.sizes.append(image)
        self.is_calibrated |= prediction.is_calibrated
        numbers = {label: number for number, label in enumerate(self.names.classes, 1)}
        truths = []
        for true in truth.objects:
            ids = {"image_id": len(self.sizes), "category_id": numbers[true.label]}
            self.truths.append(ids | truth_row(true, image))
            self.has_masks &= true.segmentation is not None
            truths.append(LabelledBox(true.label, true.box_xyxy, true.is_crowd))
        boxes = []
        for item in prediction.items:
            label = self.names.label(item)
            self.has_masks &= isinstance(item, Instance)
            if label in numbers:
                ids = {"image_id": len(self.sizes), "category_id": numbers[label]}
                self.answers.append(ids | answer_row(item, image))
            boxes.append(LabelledBox(label if label in numbers else _UNKNOWN, box_of(item)))
        return self._outcome(truths, boxes)

    def _outcome(self, truths: Sequence[LabelledBox], boxes: Sequence[LabelledBox]) -> Outcome:
        kinds = Counter[str]()
        num_true = 0
        num_answered = 0
        credit = 0.0
        for pair in match(truths, boxes):
            kinds[pair.kind] += 1
            credit += pair.credit
            true = NONE if pair.truth is None else truths[pair.truth].label
            answered = NONE if pair.answer is None else boxes[pair.answer].label
            num_true += pair.truth is not None
            num_answered += pair.answer is not None
            if pair.truth is not None:
                is_found = pair.kind in ("right", "loosely placed")
                share = self._share(truths[pair.truth].box_xyxy)
                self.found.append((share, is_found))
            if pair.kind == "badly placed":  # one missed and one extra
                self.confused[true, NONE] += 1
                self.confused[NONE, answered] += 1
            else:
                self.confused[true, answered] += 1
        self.kinds.update(kinds)
        num_right = kinds["right"] + kinds["loosely placed"]
        self.counts.append((num_right, num_answered, num_true))
        total = num_true + num_answered
        error = 1 - 2 * credit / total if total else 0.0
        return Outcome(error, frozenset(kinds), frozenset(each.label for each in (*truths, *boxes)))

    def _share(self, box: BoxXyxy) -> float:
        """Return the size of a box as a share of the side of the last image."""
        x1, y1, x2, y2 = box
        image = self.sizes[-1]
        return min(1.0, math.sqrt((x2 - x1) / image.width * (y2 - y1) / image.height))

    def metrics(self) -> list[Metric]:
        right, answered, true = np.array(self.counts, dtype=np.float64).reshape(-1, 3).T
        found = []
        for kind, name in self._iou_types():
            matches = self.scores(kind).matches
            found.append(Metric(name, ResampledPrecision(matches)))
            found.append(Metric(f"{name}50", ResampledPrecision(matches, 0)))
            if self.by_size:
                found += self._by_size(kind, name)
        return [
            *found,
            Metric("precision", Ratio(right, answered)),
            Metric("recall", Ratio(right, true)),
            Metric("calibration error", CalibrationGap(self.scored()), is_error=True),
        ]

    def _by_size(self, kind: IouType, name: str) -> list[Metric]:
        """Return the AP of each size of which there are objects."""
        found: list[Metric] = []
        for size in _SIZES:
            matches = self.scores(kind).matches_of(size)
            if any(each.num_truths.any() for each in matches):
                found.append(Metric(f"{name} {size}", ResampledPrecision(matches)))
        return found

    def _iou_types(self) -> list[tuple[IouType, str]]:
        masks: list[tuple[IouType, str]] = [("segm", "mask mAP")]
        return [*(masks if self.has_masks and self.truths else ()), ("bbox", "mAP")]

    def scored(self) -> ScoredAnswers:
        """Return the answers that COCO's evaluation counts, right at IoU 0.5."""
        matches = self.scores(self._iou_types()[0][0]).matches
        counts = [each.is_right[0] | each.is_wrong[0] for each in matches]
        counted = list(zip(matches, counts, strict=True))
        return ScoredAnswers(
            np.concatenate([each.scores[count] for each, count in counted]),
            np.concatenate([each.is_right[0][count] for each, count in counted]).astype(bool),
            np.concatenate([each.images[count] for each, count in counted]),
            self.is_calibrated,
            np.asarray([share for share, _ in self.found], dtype=np.float64),
            np.asarray([is_found for _, is_found in self.found], dtype=np.bool_),
        )

    def scores(self, kind: IouType) -> CocoScores:
        """Return COCO's evaluation of what was added before the first call."""
        if kind not in self._scores:
            rows = (self.truths, self.answers)
            self._scores[kind] = CocoScores(self.sizes, self.names.classes, *rows, kind)
        return self._scores[kind]

    def details(self) -> Details:
        scores = self.scores(self._iou_types()[0][0])
        number = Counter(row["category_id"] for row in self.truths)
        by_class = {}
        for index, label in enumerate(self.names.classes, 1):
            by_class[label] = {
                "objects": float(number[index]),
                "AP": 100 * scores.average_precision(label=label),
                "AP50": 100 * scores.average_precision(iou=0.5, label=label),
            }
        by_size = {size: 100 * scores.average_precision(size) for size in _SIZES}
        answered = {label for _, label in self.confused}
        labels = [*self.names.classes, *({_UNKNOWN} & answered), NONE]
        rows = []
        for true in labels:
            rows.append([self.confused[true, each] for each in labels])
        recalls, precisions = scores.precision_by_recall()
        by_recall = Curve(recalls.tolist(), precisions.tolist())
        of_classes = {}
        for label in self.names.classes:
            own = scores.precision_by_recall(label=label)
            of_classes[label] = Curve(own[0].tolist(), own[1].tolist())
        xs, precision, recall = scores.by_score(_MAX_POINTS)
        return Details(
            by_class,
            by_size,
            self.kinds,
            Confusion(labels, rows),
            by_recall,
            Curve(xs, precision),
            Curve(xs, recall),
            of_classes,
        )
