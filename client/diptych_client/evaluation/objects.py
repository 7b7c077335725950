"""Objects: COCO's AP by pycocotools, also over resampled images; kinds of error; calibration.

`CocoScores` is COCOeval's own evaluation. `ResampledPrecision` repeats its `accumulate` with a
weight for each image, from COCOeval's matches: a thousand resamples would otherwise match every box
a thousand times.

Calibration is the probability that an object is right, by isotonic regression: pooling adjacent
violators (Zadrozny and Elkan, 2002, "Transforming classifier scores into accurate multiclass
probability estimates", section 3). SciPy has it too, but would be the client's largest dependency.
The file is what the service's setting DIPTYCH_CALIBRATION takes.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diptych_client.evaluation.dataset import TrueObject
from diptych_client.evaluation.questions import ClassNames, ObjectsTruth, Prediction, Truth
from diptych_client.evaluation.statistics import Confusion, Curve, Details, Metric, Outcome, Ratio
from diptych_client.geometry import BoxXyxy, ImageSize, Mask
from diptych_client.long_runs import RunError
from diptych_client.matching import Floats, LabelledBox, match
from diptych_client.results import Instance, Item, box_of

IouType = Literal["bbox", "segm"]
_ALL_AREAS = 0
_MOST_DETECTIONS = -1
_SIZES = ("small", "medium", "large")  # COCO's: below 32, below 96 and from 96 pixels squared
_AREAS = ("all", *_SIZES)
_RECALLS = np.linspace(0, 1, 101)

NONE = "none"  # no true object, or no answer
_UNKNOWN = "other label"  # answered, not a class of the dataset
_MAX_POINTS = 200  # points per curve of the report

MIN_ANSWERS = 200  # to be calibrated
MIN_OBJECTS = 200  # true ones, for their smallest size
_MIN_RECALL_SHARE = 0.95  # recall, as a share of the larger half's
_NUM_BINS = 15  # Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4


def xywh(box: BoxXyxy) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def run_lengths(segmentation: Any, image: ImageSize) -> Any:
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, image.height, image.width)
    return segmentation


def encoded_mask(mask: Mask) -> Any:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def truth_row(true: TrueObject, image: ImageSize) -> dict[str, Any]:
    box = xywh(true.box_xyxy)
    area = box[2] * box[3] if true.area is None else true.area
    row = {"bbox": box, "area": area, "iscrowd": int(true.is_crowd)}
    if true.segmentation is not None:
        row["segmentation"] = run_lengths(true.segmentation, image)
    return row


def answer_row(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return an answer as COCO.loadRes would: its area decides the size for which it counts."""
    box = xywh(box_of(item))
    row = {"bbox": box, "area": box[2] * box[3], "score": item.score, "iscrowd": 0}
    if isinstance(item, Instance):
        mask = item.to_mask(image)
        row |= {"area": float(mask.sum()), "segmentation": encoded_mask(mask)}
    return row


class CocoScores:
    """COCOeval of one model; rows are COCO's annotations, image and category ids from 1."""

    def __init__(
        self,
        sizes: Sequence[ImageSize],
        classes: Sequence[str],
        truths: Sequence[Mapping[str, Any]],
        answers: Sequence[Mapping[str, Any]],
        iou_type: IouType,
    ) -> None:
        self.classes = classes
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth = _coco(sizes, classes, truths)
            self._evaluation = COCOeval(truth, _coco(sizes, classes, answers), iou_type)
            self._evaluation.evaluate()
            self._evaluation.accumulate()

    def average_precision(
        self, area: str = "all", iou: float | None = None, label: str | None = None
    ) -> float:
        """Return the mean of the defined precisions, NaN if there is none."""
        # (IoU, recall, class, area, most detections)
        precision = self._evaluation.eval["precision"]
        ious = slice(None) if iou is None else np.isclose(self._evaluation.params.iouThrs, iou)
        classes = slice(None) if label is None else [self.classes.index(label)]
        selected = precision[ious][:, :, classes, _AREAS.index(area), _MOST_DETECTIONS]
        defined = selected[selected > -1]
        return float(defined.mean()) if defined.size else float("nan")

    def precision_by_recall(
        self, iou: float = 0.5, label: str | None = None
    ) -> tuple[Floats, Floats]:
        """Return recall, and precision of a class or averaged over the classes."""
        (index,) = np.flatnonzero(np.isclose(self._evaluation.params.iouThrs, iou))
        selected = self._evaluation.eval["precision"][index, :, :, _ALL_AREAS, _MOST_DETECTIONS]
        if label is not None:
            selected = selected[:, [self.classes.index(label)]]
        defined = selected[:, (selected > -1).all(axis=0)]
        recalls = np.asarray(self._evaluation.params.recThrs)
        return recalls, defined.mean(axis=1) if defined.size else np.zeros_like(recalls)

    def by_score(self, max_points: int) -> tuple[Curve, Curve]:
        """Return precision and recall at IoU 0.5 of the answers with at least each score.

        Best first, over all classes.
        """
        if not self.matches:
            return Curve([], []), Curve([], [])
        scores = np.concatenate([matches.scores for matches in self.matches])
        is_right = np.concatenate([matches.is_right[0] for matches in self.matches])
        is_wrong = np.concatenate([matches.is_wrong[0] for matches in self.matches])
        order = np.argsort(-scores, kind="stable")
        num_right = np.cumsum(is_right[order])
        num_wrong = np.cumsum(is_wrong[order])
        num_truths = max(sum(matches.num_truths.sum() for matches in self.matches), 1)
        points = np.linspace(0, len(order) - 1, min(len(order), max_points)).astype(int)
        precision = num_right[points] / np.maximum(num_right[points] + num_wrong[points], 1)
        recall = num_right[points] / num_truths
        xs = scores[order][points].tolist()
        return Curve(xs, precision.tolist()), Curve(xs, recall.tolist())

    @cached_property
    def matches(self) -> "tuple[ClassMatches, ...]":
        return self.matches_of("all")

    def matches_of(self, area: str) -> "tuple[ClassMatches, ...]":
        """Return the matches of each class for objects of a size."""
        params = self._evaluation.params
        shape = (len(self.classes), len(params.areaRng), len(params.imgIds))
        rows = np.array(self._evaluation.evalImgs, dtype=object).reshape(shape)
        return tuple(map(ClassMatches.of, rows[:, _AREAS.index(area)]))


def _coco(
    sizes: Sequence[ImageSize], classes: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Any:
    coco = COCO()
    images = []
    for number, size in enumerate(sizes, 1):
        images.append({"id": number, "width": size.width, "height": size.height})
    coco.dataset = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
    }
    coco.createIndex()
    return coco


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """The answers of one class over all images, best score first."""

    scores: Floats  # (D,)
    images: NDArray[np.int64]  # (D,) index of the image
    is_right: NDArray[np.bool_]  # (T, D) by IoU threshold
    is_wrong: NDArray[np.bool_]  # (T, D); an ignored one is neither
    num_truths: Floats  # (I,) of each image

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any] | None]) -> Self:
        num_truths = np.zeros(len(rows))
        images: list[int] = []
        scores: list[float] = []
        matched = [np.zeros((10, 0))]
        ignored = [np.zeros((10, 0))]
        for index, row in enumerate(rows):
            if row is not None:
                num_truths[index] = (np.asarray(row["gtIgnore"]) == 0).sum()
                images += [index] * len(row["dtScores"])
                scores += row["dtScores"]
                matched.append(np.reshape(row["dtMatches"], (10, -1)))
                ignored.append(np.reshape(row["dtIgnore"], (10, -1)))
        order = np.argsort(-np.array(scores), kind="mergesort")  # as COCOeval.accumulate
        is_matched = np.concatenate(matched, axis=1)[:, order] > 0
        is_counted = np.concatenate(ignored, axis=1)[:, order] == 0
        return cls(
            np.array(scores)[order],
            np.array(images, dtype=np.int64)[order],
            is_matched & is_counted,
            ~is_matched & is_counted,
            num_truths,
        )

    def average_precision(self, weights: Floats, ious: slice | list[int]) -> float:
        """Return the mean precision at 101 recalls; source: pycocotools, COCOeval.accumulate."""
        weight = weights[self.images]
        is_drawn = weight > 0
        right = np.cumsum(self.is_right[ious][:, is_drawn] * weight[is_drawn], axis=1)
        wrong = np.cumsum(self.is_wrong[ious][:, is_drawn] * weight[is_drawn], axis=1)
        recall = right / (weights @ self.num_truths)
        precision = right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # 0 at a recall that is not reached
        indices = [np.searchsorted(reached, _RECALLS) for reached in recall]
        return float(np.take_along_axis(padded, np.array(indices), axis=1).mean())


@dataclass(frozen=True, slots=True)
class ResampledPrecision:
    """COCO's AP of matches by the weights of images; `iou_index` selects one threshold."""

    matches: Sequence[ClassMatches]
    iou_index: int | None = None

    def value(self, weights: Floats) -> float:
        ious = slice(None) if self.iou_index is None else [self.iou_index]
        values = []
        for matches in self.matches:
            if weights @ matches.num_truths > 0:
                values.append(matches.average_precision(weights, ious))
        return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """Scores of answered objects, whether each is right, and the index of its sample."""

    scores: Floats
    is_right: NDArray[np.bool_]
    samples: NDArray[np.int64]
    is_calibrated: bool  # the service calibrated some of the scores
    # true objects: sizes as shares of the image's side, and whether each was found
    shares: Floats = field(default_factory=lambda: np.zeros(0))
    are_found: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class CalibrationGap:
    """Expected calibration error, by bins of the score (Guo et al., 2017, section 2)."""

    answers: ScoredAnswers

    def value(self, weights: Floats) -> float:
        weight = weights[self.answers.samples]
        bins = np.minimum((self.answers.scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
        gaps = np.bincount(bins, weight * (self.answers.scores - self.answers.is_right), _NUM_BINS)
        return float(np.abs(gaps).sum() / weight.sum()) if weight.sum() else float("nan")


@dataclass(slots=True)
class ObjectsMeasure:
    """One model's objects: AP, precision and recall, kinds of error, confusion matrix."""

    names: ClassNames
    by_size: bool = False  # metrics of each size, too
    sizes: list[ImageSize] = field(default_factory=list)
    truths: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    # right, answered, true; of each sample
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    # size of a true object as a share of the image's side, and whether it was found
    true_shares: list[tuple[float, bool]] = field(default_factory=list)
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
                self.true_shares.append((self._share(truths[pair.truth].box_xyxy), is_found))
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
        labels = frozenset(box.label for box in (*truths, *boxes))
        return Outcome(error, frozenset(kinds), labels)

    def _share(self, box: BoxXyxy) -> float:
        """Return the size of a box as a share of the side of the last image."""
        x1, y1, x2, y2 = box
        image = self.sizes[-1]
        return min(1.0, math.sqrt((x2 - x1) / image.width * (y2 - y1) / image.height))

    def metrics(self) -> list[Metric]:
        right, answered, true = np.array(self.counts, dtype=np.float64).reshape(-1, 3).T
        metrics = []
        for kind, name in self._iou_types():
            scores = self.scores(kind)
            metrics.append(Metric(name, ResampledPrecision(scores.matches)))
            metrics.append(Metric(f"{name}50", ResampledPrecision(scores.matches, 0)))
            for size in _SIZES if self.by_size else ():
                matches = scores.matches_of(size)
                if any(of_class.num_truths.any() for of_class in matches):
                    metrics.append(Metric(f"{name} {size}", ResampledPrecision(matches)))
        metrics.append(Metric("precision", Ratio(right, answered)))
        metrics.append(Metric("recall", Ratio(right, true)))
        gap = CalibrationGap(self.scored())
        return [*metrics, Metric("calibration error", gap, is_error=True)]

    def _iou_types(self) -> list[tuple[IouType, str]]:
        if self.has_masks and self.truths:
            return [("segm", "mask mAP"), ("bbox", "mAP")]
        return [("bbox", "mAP")]

    def _main_scores(self) -> CocoScores:
        return self.scores(self._iou_types()[0][0])

    def scored(self) -> ScoredAnswers:
        """Return the answers that COCO's evaluation counts, right at IoU 0.5."""
        scores = []
        is_right = []
        images = []
        for matches in self._main_scores().matches:
            is_counted = matches.is_right[0] | matches.is_wrong[0]
            scores.append(matches.scores[is_counted])
            is_right.append(matches.is_right[0][is_counted])
            images.append(matches.images[is_counted])
        return ScoredAnswers(
            np.concatenate(scores),
            np.concatenate(is_right).astype(bool),
            np.concatenate(images),
            self.is_calibrated,
            np.array([share for share, _ in self.true_shares], dtype=np.float64),
            np.array([is_found for _, is_found in self.true_shares], dtype=np.bool_),
        )

    def scores(self, kind: IouType) -> CocoScores:
        """Return COCO's evaluation of the answers that were added before the first call."""
        if kind not in self._scores:
            classes = self.names.classes
            self._scores[kind] = CocoScores(self.sizes, classes, self.truths, self.answers, kind)
        return self._scores[kind]

    def details(self) -> Details:
        scores = self._main_scores()
        num_objects = Counter(row["category_id"] for row in self.truths)
        by_class = {}
        curves = {}
        for index, label in enumerate(self.names.classes, 1):
            by_class[label] = {
                "objects": float(num_objects[index]),
                "AP": 100 * scores.average_precision(label=label),
                "AP50": 100 * scores.average_precision(iou=0.5, label=label),
            }
            curves[label] = _curve(*scores.precision_by_recall(label=label))
        by_size = {size: 100 * scores.average_precision(size) for size in _SIZES}
        has_unknown = any(answered == _UNKNOWN for _, answered in self.confused)
        labels = [*self.names.classes, *([_UNKNOWN] if has_unknown else ()), NONE]
        rows = []
        for true in labels:
            rows.append([self.confused[true, answered] for answered in labels])
        precision_by_score, recall_by_score = scores.by_score(_MAX_POINTS)
        return Details(
            by_class,
            by_size,
            self.kinds,
            Confusion(labels, rows),
            _curve(*scores.precision_by_recall()),
            precision_by_score,
            recall_by_score,
            curves,
        )


def _curve(xs: Floats, ys: Floats) -> Curve:
    return Curve(xs.tolist(), ys.tolist())


@dataclass(frozen=True, slots=True)
class Calibration:
    """One task of one checkpoint: points of a non-decreasing, piecewise linear function."""

    model: str
    checkpoint: str
    task: str
    with_tiles: bool  # holds for answers about images in tiles
    min_object_share: float | None  # `tiles: auto` makes the tiles so small
    num_answers: int
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]


def fit_calibration(
    model: str,
    checkpoint: str,
    task: str,
    answers: ScoredAnswers | None,
    with_tiles: bool = False,
) -> Calibration:
    """Fit the calibration of a model; raise `RunError` if its answers do not allow it."""
    if answers is None:
        raise RunError(f"--calibrate needs a task and a dataset with objects; {task} has none here")
    if answers.is_calibrated:
        raise RunError(already_calibrated(model, task))
    num_answers = len(answers.scores)
    if num_answers < MIN_ANSWERS:
        raise RunError(
            f"--calibrate needs {MIN_ANSWERS} answered objects; {model} answered {num_answers}"
        )
    scores, probabilities = isotonic(answers.scores, answers.is_right)
    smallest = None if with_tiles else min_object_share(answers.shares, answers.are_found)
    return Calibration(
        model, checkpoint, task, with_tiles, smallest, num_answers, scores, probabilities
    )


def min_object_share(shares: Floats, are_found: NDArray[np.bool_]) -> float | None:
    """Return the size from which on a model finds nearly as many objects as of the larger half.

    It is None if the model finds the smallest objects so well: smaller ones may be found, too.
    """
    if len(shares) < MIN_OBJECTS:
        return None
    needed = _MIN_RECALL_SHARE * are_found[shares >= np.median(shares)].mean()
    sizes, recalls = isotonic(shares, are_found)
    index = int(np.searchsorted(recalls, needed))
    return sizes[index] if index > 0 else None


def already_calibrated(model: str, task: str) -> str:
    return (
        f"{model} answers {task} with calibrated scores, and --calibrate needs the original ones:"
        " start the service with DIPTYCH_CALIBRATION=off and choose another --out"
    )


def calibration_document(calibrations: Iterable[Calibration]) -> str:
    document = {"calibrations": [asdict(calibration) for calibration in calibrations]}
    return json.dumps(document, indent=1) + "\n"


def isotonic(
    scores: Floats, is_right: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the first and last score of each block of equal probability, with probabilities."""
    levels, index = np.unique(scores, return_inverse=True)
    weights = np.bincount(index)
    means = np.bincount(index, is_right) / weights
    blocks: list[tuple[float, float, float, float]] = []  # weight, mean, first and last score
    for level, weight, mean in zip(levels.tolist(), weights.tolist(), means.tolist(), strict=True):
        first = level
        while blocks and blocks[-1][1] >= mean:
            weight_before, mean_before, first, _ = blocks.pop()
            total = weight_before + weight
            mean = (weight_before * mean_before + weight * mean) / total
            weight = total
        blocks.append((weight, mean, first, level))
    points = {}
    for _, mean, first, last in blocks:
        points[first] = mean
        points[last] = mean
    return tuple(points), tuple(points.values())
