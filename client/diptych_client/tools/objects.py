"""Objects: COCO's AP by pycocotools' matches, also over resampled images; kinds of error.

`ClassMatches` repeats COCOeval's `accumulate` with a weight for each image: a thousand resamples
would otherwise match every box a thousand times.

Calibration is the probability that an object is right, by isotonic regression: pooling adjacent
violators (Zadrozny and Elkan, 2002, "Transforming classifier scores into accurate multiclass
probability estimates", section 3).
"""

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from operator import attrgetter, itemgetter
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diptych_client.datasets.dataset import TrueObject
from diptych_client.datasets.long_runs import RunError
from diptych_client.geometry import BoxXyxy, ImageSize, Mask
from diptych_client.results import Instance, Item, Model
from diptych_client.tools.matching import Floats, LabelledBox, match
from diptych_client.tools.questions import ClassNames, ObjectsTruth, Prediction, Truth
from diptych_client.tools.statistics import Details, Estimator, Metric, Outcome, ratio

IouType = Literal["bbox", "segm"]
Flags = NDArray[np.bool_]
Row = dict[str, Any]  # an annotation of COCO
_ALL_SIZES = [[0, 1e10]]  # COCO's range of areas
_RECALLS = np.linspace(0, 1, 101)
_AT_50 = [0]  # the first of COCO's thresholds of IoU

MIN_ANSWERS = 200  # to be calibrated
_MIN_REFERENCES = 100  # of fewer images, none is told apart
_MAX_REFERENCES = 1000
_MAX_EMBEDDINGS = 4000
_MAX_COMPONENTS = 128  # .7 MB of a file at 2,048 features
_SHRINKAGE = 0.1
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


def truth_row(true: TrueObject, image: ImageSize) -> Row:
    box = xywh(true.box_xyxy)
    row: Row = {"bbox": box, "area": box[2] * box[3], "iscrowd": int(true.is_crowd)}
    if true.segmentation is not None:
        row["segmentation"] = run_lengths(true.segmentation, image)
    return row


def answer_row(item: Item, image: ImageSize) -> Row:
    """Return an answer as COCO.loadRes would: of a mask, its pixels are the area."""
    box = xywh(item.box_xyxy)
    # NaN ranks last, too
    score = math.nan if item.score is None else item.score
    row: Row = {"bbox": box, "area": box[2] * box[3], "score": score, "iscrowd": 0}
    if isinstance(item, Instance):
        mask = item.to_mask(image)
        row |= {"area": float(mask.sum()), "segmentation": encoded_mask(mask)}
    return row


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """The answers of one class over all images, best score first."""

    scores: Floats  # (D,)
    images: NDArray[np.int64]  # (D,) index of the image
    is_right: Flags  # (T, D) by IoU threshold
    is_wrong: Flags  # (T, D); an ignored one is neither
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
        order = np.argsort(-np.array(scores), kind="mergesort")  # COCOeval sorts so
        is_matched = np.concatenate(matched, axis=1)[:, order] > 0
        is_counted = np.concatenate(ignored, axis=1)[:, order] == 0
        return cls(
            np.array(scores)[order],
            np.array(images, dtype=np.int64)[order],
            is_matched & is_counted,
            ~is_matched & is_counted,
            num_truths,
        )

    def precisions(self, weights: Floats, ious: slice | list[int]) -> Floats:
        """Return the precision at 101 recalls, (T, 101); source: COCOeval.accumulate."""
        weight = weights[self.images]
        is_drawn = weight > 0
        right = np.cumsum(self.is_right[ious][:, is_drawn] * weight[is_drawn], axis=1)
        wrong = np.cumsum(self.is_wrong[ious][:, is_drawn] * weight[is_drawn], axis=1)
        recall = right / (weights @ self.num_truths)
        precision = right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # 0 at a recall that is not reached
        indices = [np.searchsorted(reached, _RECALLS) for reached in recall]
        return np.take_along_axis(padded, np.array(indices), axis=1)


def mean_precisions(
    matches: Iterable[ClassMatches], weights: Floats, ious: slice | list[int]
) -> Floats:
    """Return the precision at 101 recalls, averaged over the classes with objects; NaN without."""
    precisions = []
    for class_matches in matches:
        if weights @ class_matches.num_truths > 0:
            precisions.append(class_matches.precisions(weights, ious))
    return np.mean(precisions, axis=0) if precisions else np.full((1, len(_RECALLS)), math.nan)


def average_precision(matches: Sequence[ClassMatches], ious: slice | list[int]) -> Estimator:
    """Return COCO's AP as a function of the weights of images."""
    return lambda weights: float(mean_precisions(matches, weights, ious).mean())


def coco_matches(
    sizes: Sequence[ImageSize],
    classes: Sequence[str],
    truths: Sequence[Row],
    answers: Sequence[Row],
    iou_type: IouType,
) -> tuple[ClassMatches, ...]:
    """Return the matches of each class; rows have image and category ids from 1."""
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _coco(sizes, classes, truths)
        evaluation = COCOeval(truth, _coco(sizes, classes, answers), iou_type)
        evaluation.params.areaRng = _ALL_SIZES
        evaluation.evaluate()
    rows = np.array(evaluation.evalImgs, dtype=object).reshape(len(classes), len(sizes))
    return tuple(map(ClassMatches.of, rows.tolist()))


def _coco(sizes: Sequence[ImageSize], classes: Sequence[str], rows: Sequence[Row]) -> Any:
    coco = COCO()
    coco.dataset = {"images": [], "categories": [], "annotations": []}
    for number, size in enumerate(sizes, 1):
        coco.dataset["images"].append({"id": number, **asdict(size)})
    for number, name in enumerate(classes, 1):
        coco.dataset["categories"].append({"id": number, "name": name})
    for number, row in enumerate(rows, 1):
        coco.dataset["annotations"].append({"id": number, **row})
    coco.createIndex()
    return coco


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """Scores of the answered objects that have one, and whether each is right."""

    scores: Floats
    is_right: Flags
    is_calibrated: bool  # the service calibrated some of the scores
    num_unscored: int = 0
    embeddings: Sequence[str] = ()  # of the first images

    def calibration_error(self) -> float:
        """Return the expected error, by bins of the score (Guo et al., 2017, section 2)."""
        bins = np.minimum((self.scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
        gaps = np.bincount(bins, self.scores - self.is_right, _NUM_BINS)
        return float(np.abs(gaps).sum() / len(bins)) if len(bins) else math.nan


@dataclass(slots=True)
class ObjectsMeasure:
    """One model's objects: AP, precision and recall, kinds of error."""

    names: ClassNames
    sizes: list[ImageSize] = field(default_factory=list)
    truths: list[Row] = field(default_factory=list)
    answers: list[Row] = field(default_factory=list)
    # right, answered, true; of each sample
    counts: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    has_masks: bool = True
    is_calibrated: bool = False
    embeddings: list[str] = field(default_factory=list)
    _matches: dict[IouType, tuple[ClassMatches, ...]] = field(default_factory=dict)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, ObjectsTruth)
        image = prediction.image
        self.sizes.append(image)
        self.is_calibrated |= prediction.is_calibrated
        if prediction.embedding is not None and len(self.embeddings) < _MAX_EMBEDDINGS:
            self.embeddings.append(prediction.embedding)
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
            boxes.append(LabelledBox(label, item.box_xyxy))
        return self._outcome(truths, boxes)

    def _outcome(self, truths: Sequence[LabelledBox], boxes: Sequence[LabelledBox]) -> Outcome:
        kinds = Counter[str]()
        credit = 0.0
        pairs = match(truths, boxes)
        true_kinds = ["ignored"] * len(truths)
        answer_kinds = ["ignored"] * len(boxes)
        for pair in pairs:
            kinds[pair.kind] += 1
            credit += pair.credit
            if pair.answer is not None:
                answer_kinds[pair.answer] = pair.kind
            if pair.truth is not None:
                true_kinds[pair.truth] = pair.kind
        self.kinds.update(kinds)
        num_right = kinds["right"] + kinds["loosely placed"]
        num_answered = len(pairs) - kinds["missed"]
        num_true = len(pairs) - kinds["extra"]
        self.counts.append((num_right, num_answered, num_true))
        error = 1 - 2 * credit / (num_true + num_answered) if pairs else 0.0
        return Outcome(error, frozenset(kinds), true_kinds, answer_kinds)

    def metrics(self) -> list[Metric]:
        metrics = []
        for iou_type in self._iou_types():
            name = "mAP" if iou_type == "bbox" else "mask mAP"
            matches = self.matches(iou_type)
            metrics.append(Metric(name, average_precision(matches, slice(None))))
            metrics.append(Metric(f"{name}50", average_precision(matches, _AT_50)))
        right, answered, true = np.array(self.counts, dtype=np.float64).reshape(-1, 3).T
        metrics.append(Metric("precision", ratio(right, answered)))
        metrics.append(Metric("recall", ratio(right, true)))
        return metrics

    def _iou_types(self) -> list[IouType]:
        return ["segm", "bbox"] if self.has_masks and self.truths else ["bbox"]

    def matches(self, iou_type: IouType | None = None) -> tuple[ClassMatches, ...]:
        """Return the matches of each class, of the answers added before the first call."""
        iou_type = iou_type or self._iou_types()[0]
        if iou_type not in self._matches:
            classes = self.names.classes
            matches = coco_matches(self.sizes, classes, self.truths, self.answers, iou_type)
            self._matches[iou_type] = matches
        return self._matches[iou_type]

    def scored(self) -> ScoredAnswers:
        matches = self.matches()

        def joined(name: str) -> Any:
            return np.concatenate(list(map(attrgetter(name), matches)), axis=-1)

        is_right = joined("is_right")[0]
        is_counted = is_right | joined("is_wrong")[0]
        is_unscored = np.isnan(joined("scores"))
        is_fitted = is_counted & ~is_unscored
        return ScoredAnswers(
            joined("scores")[is_fitted],
            is_right[is_fitted],
            self.is_calibrated,
            int((is_counted & is_unscored).sum()),
            self.embeddings,
        )

    def details(self) -> Details:
        matches = self.matches()
        num_objects = Counter(map(itemgetter("category_id"), self.truths))
        by_class = {}
        weights = np.ones(len(self.sizes))
        for number, label in enumerate(self.names.classes, 1):
            of_class = [matches[number - 1]]
            by_class[label] = {
                "objects": float(num_objects[number]),
                "AP": 100 * average_precision(of_class, slice(None))(weights),
                "AP50": 100 * average_precision(of_class, _AT_50)(weights),
            }
        precisions = np.nan_to_num(mean_precisions(matches, weights, _AT_50)[0])
        error = 100 * self.scored().calibration_error()
        return Details(by_class, dict(self.kinds), precisions.tolist(), error)


def fit_calibration(
    model: Model, task: str, answers: ScoredAnswers | None, with_tiles: bool = False
) -> dict[str, Any]:
    """Return the calibration of one task of a model as the service reads it.

    Its points are those of a non-decreasing, piecewise linear function. Raise `RunError` if the
    answers do not allow it.
    """
    if answers is None:
        raise RunError(f"--calibrate needs a task and a dataset with objects; {task} has none here")
    if answers.is_calibrated:
        raise RunError(
            f"{model.id} answers {task} with calibrated scores, and --calibrate needs the original"
            " ones: start the service with DIPTYCH_CALIBRATION=off and choose another --out"
        )
    num_answers = len(answers.scores)
    if num_answers < MIN_ANSWERS:
        rule = f"--calibrate needs {MIN_ANSWERS} answered objects with scores"
        cause = f"{model.id} answered {num_answers}"
        if answers.num_unscored:
            cause += f", and {answers.num_unscored} without: its engine gives no log-probabilities"
        raise RunError(f"{rule}; {cause}")
    scores, probabilities = isotonic(answers.scores, answers.is_right)
    images = image_statistics(answers.embeddings)
    return {
        "model": model.id,
        "checkpoint": model.checkpoint,
        "task": task,
        "with_tiles": with_tiles,
        "num_answers": num_answers,
        "scores": scores,
        "probabilities": probabilities,
        "images": images and {"precision": model.precision, **images},
    }


def image_statistics(embeddings: Sequence[str]) -> dict[str, Any] | None:
    """Return what the service tells images apart by; None for fewer than 200 images.

    Half of the images, up to 1,000, are references. The others fit mean and covariance, which is
    shrunk towards its mean variance (Ledoit and Wolf, 2004).
    """
    num_references = min(len(embeddings) // 2, _MAX_REFERENCES)
    if num_references < _MIN_REFERENCES:
        return None
    rows = [np.frombuffer(base64.b64decode(embedding), "<f4") for embedding in embeddings]
    references, fitted = np.split(np.random.default_rng(0).permutation(rows), [num_references])
    mean = fitted.mean(axis=0)
    raw_variances, axes = np.linalg.eigh(np.cov(fitted, rowvar=False))
    target = max(float(raw_variances.mean()), 1e-12)  # equal images have none
    variances = (1 - _SHRINKAGE) * raw_variances[::-1] + _SHRINKAGE * target
    leading = variances[:_MAX_COMPONENTS]
    residual = float(variances[min(_MAX_COMPONENTS, len(mean) - 1) :].mean())
    components = axes.T[::-1][:_MAX_COMPONENTS].astype("<f2")
    offsets = references - mean
    projections = offsets @ components.T.astype(np.float32)
    rests = np.maximum(np.sum(offsets**2, axis=1) - np.sum(projections**2, axis=1), 0)
    distances = np.sqrt(np.sum(projections**2 / leading, axis=1) + rests / residual)
    return {
        "mean": base64.b64encode(mean.tobytes()).decode(),
        "components": base64.b64encode(components.tobytes()).decode(),
        "variances": leading.tolist(),
        "residual_variance": residual,
        "distances": np.sort(distances).round(4).tolist(),
    }


def isotonic(scores: Floats, is_right: Flags) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
