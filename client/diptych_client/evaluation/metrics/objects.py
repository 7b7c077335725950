"""Objects: AP of boxes and masks, precision and recall, kinds of error, confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diptych_client.evaluation.answers import Prediction
from diptych_client.evaluation.calibration import CalibrationGap, ScoredAnswers
from diptych_client.evaluation.dataset import TrueObject
from diptych_client.evaluation.metrics.detection import (
    CocoScores,
    IouType,
    ResampledPrecision,
    encoded_mask,
    run_lengths,
    xywh,
)
from diptych_client.evaluation.metrics.outcome import Confusion, Curve, Details, Outcome
from diptych_client.evaluation.questions import ClassNames, ObjectsTruth, Truth
from diptych_client.evaluation.statistics import Metric, Ratio
from diptych_client.geometry import ImageSize
from diptych_client.matching import LabelledBox, Pair, match
from diptych_client.results import Instance, Item, box_of

NONE = "none"  # no true object, or no answer
_UNKNOWN = "other label"  # answered, not a class of the dataset
_MAX_POINTS = 200  # of a curve in the report


@dataclass(slots=True)
class ObjectsMeasure:
    """One model's objects."""

    names: ClassNames
    sizes: list[ImageSize] = field(default_factory=list)
    truths: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    # right, answered, true; of each sample
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    has_masks: bool = True
    is_calibrated: bool = False
    _scores: dict[IouType, CocoScores] = field(default_factory=dict)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, ObjectsTruth)
        self.sizes.append(prediction.image)
        self.is_calibrated |= prediction.is_calibrated
        items = [(self._label(item), item) for item in prediction.items]
        self._add_rows(truth, items, prediction.image)
        truths = [LabelledBox(each.label, each.box_xyxy, each.is_crowd) for each in truth.objects]
        boxes = [LabelledBox(label, box_of(item)) for label, item in items]
        return self._outcome(truths, boxes, match(truths, boxes))

    def _label(self, item: Item) -> str:
        label = self.names.label(item)
        return label if label in self.names.classes else _UNKNOWN

    def _add_rows(
        self, truth: ObjectsTruth, items: Sequence[tuple[str, Item]], image: ImageSize
    ) -> None:
        image_id = len(self.sizes)
        numbers = {label: number for number, label in enumerate(self.names.classes, 1)}
        has_answers = all(isinstance(item, Instance) for _, item in items)
        self.has_masks &= has_answers and all(
            each.segmentation is not None for each in truth.objects
        )
        for each in truth.objects:
            self.truths.append(
                {
                    "image_id": image_id,
                    "category_id": numbers[each.label],
                    **_truth_row(each, image),
                }
            )
        for label, item in items:
            if label in numbers:
                row = {
                    "image_id": image_id,
                    "category_id": numbers[label],
                    **_answer_row(item, image),
                }
                self.answers.append(row)

    def _outcome(
        self, truths: Sequence[LabelledBox], boxes: Sequence[LabelledBox], pairs: Sequence[Pair]
    ) -> Outcome:
        kinds = Counter(pair.kind for pair in pairs)
        for pair in pairs:
            is_confused = pair.kind in ("right", "wrong class")
            if pair.truth is not None:
                answered = (
                    boxes[pair.answer].label if is_confused and pair.answer is not None else NONE
                )
                self.confused[truths[pair.truth].label, answered] += 1
            if pair.answer is not None and not is_confused:
                self.confused[NONE, boxes[pair.answer].label] += 1
        num_true, num_answered = (
            sum(getattr(pair, side) is not None for pair in pairs) for side in ("truth", "answer")
        )
        self.kinds.update(kinds)
        self.counts.append((kinds["right"], num_answered, num_true))
        error = (
            1 - 2 * kinds["right"] / (num_true + num_answered) if num_true + num_answered else 0.0
        )
        return Outcome(error, frozenset(kinds), frozenset(each.label for each in (*truths, *boxes)))

    def metrics(self) -> list[Metric]:
        right, answered, true = np.array(self.counts, dtype=np.float64).reshape(-1, 3).T
        found = [
            metric for kind, name in self._iou_types() for metric in self._precisions(kind, name)
        ]
        return [
            *found,
            Metric("precision", Ratio(right, answered)),
            Metric("recall", Ratio(right, true)),
            Metric("calibration error", CalibrationGap(self.scored()), is_error=True),
        ]

    def _precisions(self, kind: IouType, name: str) -> list[Metric]:
        matches = self.scores(kind).matches
        return [
            Metric(name, ResampledPrecision(matches)),
            Metric(f"{name}50", ResampledPrecision(matches, 0)),
        ]

    def _iou_types(self) -> list[tuple[IouType, str]]:
        masks: list[tuple[IouType, str]] = [("segm", "mask mAP")]
        return [*(masks if self.has_masks and self.truths else ()), ("bbox", "mAP")]

    def scored(self) -> ScoredAnswers:
        """Return the answers that COCO's evaluation counts, right at IoU 0.5."""
        matches = self.scores(self._iou_types()[0][0]).matches
        counts = [each.is_right[0] | each.is_wrong[0] for each in matches]
        scores, is_right, samples = (
            np.concatenate([part[count] for part, count in zip(parts, counts, strict=True)])
            for parts in (
                [each.scores for each in matches],
                [each.is_right[0] for each in matches],
                [each.images for each in matches],
            )
        )
        return ScoredAnswers(scores, is_right.astype(bool), samples, self.is_calibrated)

    def scores(self, kind: IouType) -> CocoScores:
        """Return COCO's evaluation of what was added before the first call."""
        if kind not in self._scores:
            self._scores[kind] = CocoScores(
                self.sizes, self.names.classes, self.truths, self.answers, kind
            )
        return self._scores[kind]

    def details(self) -> Details:
        kind = self._iou_types()[0][0]
        scores = self.scores(kind)
        number = Counter(row["category_id"] for row in self.truths)
        by_class = {
            label: {
                "objects": float(number[index]),
                "AP": 100 * scores.average_precision(label=label),
                "AP50": 100 * scores.average_precision(iou=0.5, label=label),
            }
            for index, label in enumerate(self.names.classes, 1)
        }
        by_size = {
            area: 100 * scores.average_precision(area) for area in ("small", "medium", "large")
        }
        recalls, precisions = scores.precision_by_recall()
        by_recall = Curve(recalls.tolist(), precisions.tolist())
        precision, recall = _by_score(scores)
        return Details(
            by_class, by_size, self.kinds, self._confusion(), by_recall, precision, recall
        )

    def _confusion(self) -> Confusion:
        labels = [
            *self.names.classes,
            *([_UNKNOWN] if any(label == _UNKNOWN for _, label in self.confused) else []),
            NONE,
        ]
        return Confusion(
            labels, [[self.confused[true, answered] for answered in labels] for true in labels]
        )


def _truth_row(each: TrueObject, image: ImageSize) -> dict[str, Any]:
    box = xywh(each.box_xyxy)
    row = {
        "bbox": box,
        "area": box[2] * box[3] if each.area is None else each.area,
        "iscrowd": int(each.is_crowd),
    }
    return (
        row
        if each.segmentation is None
        else row | {"segmentation": run_lengths(each.segmentation, image)}
    )


def _answer_row(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return an answer as COCO.loadRes would: its area decides the size for which it counts."""
    box = xywh(box_of(item))
    row = {"bbox": box, "area": box[2] * box[3], "score": item.score, "iscrowd": 0}
    if not isinstance(item, Instance):
        return row
    mask = item.to_mask(image)
    return row | {"area": float(mask.sum()), "segmentation": encoded_mask(mask)}


def _by_score(scores: CocoScores) -> tuple[Curve, Curve]:
    """Return precision and recall at IoU 0.5 of the answers with at least a score, over all
    classes.
    """
    matches = scores.matches
    values = np.concatenate([each.scores for each in matches]) if matches else np.zeros(0)
    order = np.argsort(-values, kind="stable")
    right, wrong = (
        np.cumsum(np.concatenate([getattr(each, side)[0] for each in matches])[order])
        if matches
        else np.zeros(0)
        for side in ("is_right", "is_wrong")
    )
    num_truths = sum(each.num_truths.sum() for each in matches)
    shown = np.linspace(0, len(order) - 1, min(len(order), _MAX_POINTS)).astype(int)
    xs = [float(values[order[i]]) for i in shown]
    precision = [float(right[i] / max(right[i] + wrong[i], 1)) for i in shown]
    recall = [float(right[i] / max(num_truths, 1)) for i in shown]
    return Curve(xs, precision), Curve(xs, recall)
