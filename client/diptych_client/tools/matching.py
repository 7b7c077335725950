"""Boxes of two lists that are the same object: greedy by IoU, as in Ultralytics' confusion matrix.

Used between a model and the truth, and between two models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diptych_client.geometry import BoxXyxy

SAME_OBJECT_IOU = 0.5
WELL_PLACED_IOU = 0.75  # COCO's AP75
NEARBY_IOU = 0.1  # "localization error" of TIDE (Bolya et al., 2020, arXiv 2008.08115)

Kind = Literal["right", "loosely placed", "wrong class", "badly placed", "missed", "extra"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A box with its class; one marked `is_ignored` counts neither if matched nor if missed."""

    label: str
    box_xyxy: BoxXyxy
    is_ignored: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """The indices of a true box and an answered box. A missing counterpart is None.

    `credit` is the share of COCO's ten IoU thresholds, 0.5 to 0.95, at which the answer is right.
    """

    kind: Kind
    truth: int | None
    answer: int | None
    credit: float = 0.0


def pairwise_iou(first: Sequence[BoxXyxy], second: Sequence[BoxXyxy]) -> Floats:
    """Return the IoU of all pairs, (len(first), len(second))."""
    a = np.asarray(first, dtype=np.float64).reshape(-1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(-1, 4)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=1)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1)
    union = area_a[:, None] + area_b[None] - intersection
    iou: Floats = intersection / np.where(union > 0, union, 1)
    return iou


def greedy_pairs(iou: Floats, threshold: float) -> list[tuple[int, int]]:
    """Return disjoint pairs with IoU >= threshold, the best first."""
    rows, columns = np.nonzero(iou >= threshold)
    order = np.argsort(-iou[rows, columns], kind="stable")
    used_rows = set[int]()
    used_columns = set[int]()
    pairs = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            pairs.append((row, column))
    return pairs


def match(truths: Sequence[LabelledBox], answers: Sequence[LabelledBox]) -> list[Pair]:
    """Pair boxes of the same class, then of others, then nearby ones; the rest has no partner."""
    iou = pairwise_iou([box.box_xyxy for box in truths], [box.box_xyxy for box in answers])
    true_labels = np.array([box.label for box in truths], dtype=object)
    answered_labels = np.array([box.label for box in answers], dtype=object)
    same_class_iou = iou * (true_labels[:, None] == answered_labels)
    rounds: tuple[tuple[Kind, Floats, float], ...] = (
        ("right", same_class_iou, WELL_PLACED_IOU),
        ("loosely placed", same_class_iou, SAME_OBJECT_IOU),
        ("wrong class", iou - same_class_iou, SAME_OBJECT_IOU),
        ("badly placed", same_class_iou, NEARBY_IOU),
    )
    num_thresholds = np.minimum(np.floor((same_class_iou - 0.5) / 0.05 + 1e-9) + 1, 10)
    credit = np.where(same_class_iou < SAME_OBJECT_IOU, 0, num_thresholds / 10)
    pairs: list[Pair] = []
    is_missed = np.ones(len(truths), dtype=bool)
    is_extra = np.ones(len(answers), dtype=bool)
    for kind, round_iou, threshold in rounds:
        for row, column in greedy_pairs(round_iou * np.outer(is_missed, is_extra), threshold):
            pairs.append(Pair(kind, row, column, float(credit[row, column])))
            is_missed[row] = False
            is_extra[column] = False
    pairs += [Pair("missed", row, None) for row in np.flatnonzero(is_missed).tolist()]
    pairs += [Pair("extra", None, column) for column in np.flatnonzero(is_extra).tolist()]
    return [pair for pair in pairs if pair.truth is None or not truths[pair.truth].is_ignored]
