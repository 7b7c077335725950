"""Boxes that are the same object."""

import numpy as np
import pytest

from diptych_client.geometry import BoxXyxy
from diptych_client.matching import LabelledBox, coco_credit, match, pairwise_iou

BOX = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (2.0, 0.0, 12.0, 10.0)  # IoU 8/12
HALF = (0.0, 0.0, 5.0, 10.0)
WELL = (0.0, 0.0, 7.5, 10.0)
NEAR = (6.0, 0.0, 16.0, 10.0)  # IoU 4/16
FAR = (50.0, 50.0, 60.0, 60.0)
Labelled = tuple[str, BoxXyxy]


def test_iou_is_that_of_areas() -> None:
    iou = pairwise_iou([BOX], [BOX, SHIFTED, NEAR, FAR])
    np.testing.assert_allclose(iou, [[1, 80 / 120, 40 / 160, 0]])
    assert pairwise_iou([], [BOX]).shape == (0, 1)
    assert pairwise_iou([(1.0, 1.0, 1.0, 1.0)], [(1.0, 1.0, 1.0, 1.0)]).item() == 0


@pytest.mark.parametrize(
    ("truths", "answers", "kinds"),
    [
        ([], [], []),
        ([("car", BOX)], [], ["missed"]),
        ([], [("car", BOX)], ["extra"]),
        ([("car", BOX)], [("car", WELL)], ["right"]),
        ([("car", BOX)], [("car", SHIFTED)], ["loosely placed"]),
        ([("car", BOX)], [("car", HALF)], ["loosely placed"]),
        ([("car", BOX)], [("dog", SHIFTED)], ["wrong class"]),
        ([("car", BOX)], [("car", NEAR)], ["badly placed"]),
        ([("car", BOX)], [("dog", NEAR)], ["extra", "missed"]),
        ([("car", BOX)], [("car", FAR)], ["extra", "missed"]),
        ([("car", BOX)], [("car", BOX), ("car", SHIFTED)], ["extra", "right"]),
        ([("car", BOX)], [("dog", BOX), ("car", SHIFTED)], ["extra", "loosely placed"]),
        ([("car", BOX), ("dog", BOX)], [("dog", BOX)], ["missed", "right"]),
    ],
)
def test_pair_has_one_kind(
    truths: list[Labelled], answers: list[Labelled], kinds: list[str]
) -> None:
    pairs = match([LabelledBox(*box) for box in truths], [LabelledBox(*box) for box in answers])
    assert sorted(pair.kind for pair in pairs) == kinds
    assert sorted(pair.truth for pair in pairs if pair.truth is not None) == [*range(len(truths))]


@pytest.mark.parametrize(
    ("iou", "credit"), [(0.49, 0), (0.5, 0.1), (0.55, 0.2), (0.74, 0.5), (0.95, 1), (1, 1)]
)
def test_credit_is_the_share_of_thresholds(iou: float, credit: float) -> None:
    assert coco_credit(iou) == credit


def test_ignored_object_is_neither_found_nor_missed() -> None:
    ignored = LabelledBox("car", BOX, is_ignored=True)
    assert match([ignored], []) == []
    assert match([ignored], [LabelledBox("car", SHIFTED)]) == []
    (pair,) = match([LabelledBox("car", BOX)], [LabelledBox("car", SHIFTED)])
    assert pair.credit == 0.4
