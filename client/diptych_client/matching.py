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
NEARBY_IOU = 0.1  # "localization error" of TIDE (Bolya et al., 2020, arXiv 2008.08115)

Kind = Literal["right", "wrong class", "badly placed", "missed", "extra"]


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A box with its class; one marked `is_ignored` counts neither if found nor if missed."""

    label: str
    box_xyxy: BoxXyxy
    is_ignored: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """A true box and an answered box, by index; None where there is no counterpart."""

    kind: Kind
    truth: int | None
    answer: int | None


def pairwise_iou(first: Sequence[BoxXyxy], second: Sequence[BoxXyxy]) -> NDArray[np.float64]:
    """Return the IoU of all pairs, (len(first), len(second))."""
    a, b = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (first, second))
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a, area_b = (np.clip(each[:, 2:] - each[:, :2], 0, None).prod(axis=1) for each in (a, b))
    union = area_a[:, None] + area_b[None] - intersection
    iou: NDArray[np.float64] = np.divide(
        intersection, union, out=np.zeros_like(union), where=union > 0
    )
    return iou


def greedy_pairs(iou: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
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
    """Pair boxes of the same class, then of other classes, then nearby ones.

    The rest is missed or extra.
    """
    iou = pairwise_iou([each.box_xyxy for each in truths], [each.box_xyxy for each in answers])
    same = np.array([[a.label == b.label for b in answers] for a in truths], dtype=bool).reshape(
        iou.shape
    )
    pairs: list[Pair] = []
    rounds: tuple[tuple[Kind, NDArray[np.float64], float], ...] = (
        ("right", iou * same, SAME_OBJECT_IOU),
        ("wrong class", iou * ~same, SAME_OBJECT_IOU),
        ("badly placed", iou * same, NEARBY_IOU),
    )
    for kind, allowed, threshold in rounds:
        found = greedy_pairs(allowed, threshold)
        pairs += [Pair(kind, row, column) for row, column in found]
        for row, column in found:
            for _, each, _ in rounds:
                each[row], each[:, column] = 0, 0
    matched_truths = {pair.truth for pair in pairs}
    matched_answers = {pair.answer for pair in pairs}
    pairs += [
        Pair("missed", index, None) for index in range(len(truths)) if index not in matched_truths
    ]
    pairs += [
        Pair("extra", None, index) for index in range(len(answers)) if index not in matched_answers
    ]
    return [pair for pair in pairs if pair.truth is None or not truths[pair.truth].is_ignored]
