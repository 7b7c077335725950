"""COCO's average precision by pycocotools, and the same over resampled images.

`CocoScores` is COCOeval's own evaluation. `ResampledPrecision` repeats its `accumulate` with a
weight for each image, from COCOeval's matches: a thousand resamples would otherwise match every box
a thousand times.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diptych_client.evaluation.dataset import TrueObject
from diptych_client.evaluation.statistics import Floats
from diptych_client.geometry import BoxXyxy, ImageSize, Mask
from diptych_client.results import Instance, Item, box_of

IouType = Literal["bbox", "segm"]
_ALL_AREAS = 0
_MOST_DETECTIONS = -1
_AREAS = ("all", "small", "medium", "large")
_RECALLS = np.linspace(0, 1, 101)


def _xywh(box: BoxXyxy) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def run_lengths(segmentation: Any, image: ImageSize) -> Any:
    """Return a segmentation of COCO as its compressed run lengths."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, image.height, image.width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, image.height, image.width)
    return segmentation


def encoded_mask(mask: Mask) -> Any:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def truth_row(true: TrueObject, image: ImageSize) -> dict[str, Any]:
    """Return a true object as an annotation of COCO."""
    box = _xywh(true.box_xyxy)
    area = box[2] * box[3] if true.area is None else true.area
    row = {"bbox": box, "area": area, "iscrowd": int(true.is_crowd)}
    if true.segmentation is None:
        return row
    return row | {"segmentation": run_lengths(true.segmentation, image)}


def answer_row(item: Item, image: ImageSize) -> dict[str, Any]:
    """Return an answer as COCO.loadRes would: its area decides the size for which it counts."""
    box = _xywh(box_of(item))
    row = {"bbox": box, "area": box[2] * box[3], "score": item.score, "iscrowd": 0}
    if not isinstance(item, Instance):
        return row
    mask = item.to_mask(image)
    return row | {"area": float(mask.sum()), "segmentation": encoded_mask(mask)}


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
        chosen = precision[ious][:, :, classes, _AREAS.index(area), _MOST_DETECTIONS]
        defined = chosen[chosen > -1]
        return float(defined.mean()) if defined.size else float("nan")

    def precision_by_recall(
        self, iou: float = 0.5, label: str | None = None
    ) -> tuple[Floats, Floats]:
        """Return recall, and precision of a class or averaged over the classes."""
        (index,) = np.flatnonzero(np.isclose(self._evaluation.params.iouThrs, iou))
        chosen = self._evaluation.eval["precision"][index, :, :, _ALL_AREAS, _MOST_DETECTIONS]
        if label is not None:
            chosen = chosen[:, [self.classes.index(label)]]
        defined = chosen[:, (chosen > -1).all(axis=0)]
        recalls = np.asarray(self._evaluation.params.recThrs)
        return recalls, defined.mean(axis=1) if defined.size else np.zeros_like(recalls)

    def by_score(self, max_points: int) -> tuple[list[float], list[float], list[float]]:
        """Return scores, best first, with precision and recall at IoU 0.5 of the answers with at
        least this score, over all classes.
        """
        if not self.matches:
            return [], [], []
        values = np.concatenate([each.scores for each in self.matches])
        order = np.argsort(-values, kind="stable")
        right = np.cumsum(np.concatenate([each.is_right[0] for each in self.matches])[order])
        wrong = np.cumsum(np.concatenate([each.is_wrong[0] for each in self.matches])[order])
        num_truths = max(sum(each.num_truths.sum() for each in self.matches), 1)
        shown = np.linspace(0, len(order) - 1, min(len(order), max_points)).astype(int)
        precision = right[shown] / np.maximum(right[shown] + wrong[shown], 1)
        recall = right[shown] / num_truths
        return values[order][shown].tolist(), precision.tolist(), recall.tolist()

    @cached_property
    def matches(self) -> "tuple[ClassMatches, ...]":
        """Return COCOeval's matches of each class."""
        return self.matches_of("all")

    def matches_of(self, area: str) -> "tuple[ClassMatches, ...]":
        """Return the matches of each class for objects of a size."""
        params = self._evaluation.params
        shape = (len(self.classes), len(params.areaRng), len(params.imgIds))
        rows = np.array(self._evaluation.evalImgs, dtype=object).reshape(shape)
        return tuple(ClassMatches.of(each) for each in rows[:, _AREAS.index(area)])


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
        found = []
        for index, row in enumerate(rows):
            if row is not None:
                num_truths[index] = (np.asarray(row["gtIgnore"]) == 0).sum()
                if row["dtScores"]:
                    found.append((index, row))
        if not found:
            none = np.zeros((10, 0), dtype=bool)
            return cls(np.zeros(0), np.zeros(0, dtype=np.int64), none, none, num_truths)
        scores = np.concatenate([row["dtScores"] for _, row in found])
        order = np.argsort(-scores, kind="mergesort")  # same order as COCOeval.accumulate
        sizes = [len(row["dtScores"]) for _, row in found]
        images = np.repeat([index for index, _ in found], sizes)[order]
        is_matched = np.concatenate([row["dtMatches"] for _, row in found], axis=1)[:, order] > 0
        ignored = np.concatenate([row["dtIgnore"] for _, row in found], axis=1)[:, order]
        counts = ~ignored.astype(bool)
        return cls(scores[order], images, is_matched & counts, ~is_matched & counts, num_truths)

    def average_precision(self, weights: Floats, ious: slice | list[int]) -> float:
        """Return the mean precision at 101 recalls; source: pycocotools, COCOeval.accumulate."""
        weight = weights[self.images]
        drawn = weight > 0
        right = np.cumsum(self.is_right[ious][:, drawn] * weight[drawn], axis=1)
        wrong = np.cumsum(self.is_wrong[ious][:, drawn] * weight[drawn], axis=1)
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
        values = [
            each.average_precision(weights, ious)
            for each in self.matches
            if weights @ each.num_truths > 0
        ]
        return float(np.mean(values)) if values else float("nan")
