"""Boxes that are the same object."""

import numpy as np
import pytest

from diptych_client.matching import LabelledBox, coco_credit, match, pairwise_iou

BOX = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (2.0, 0.0, 12.0, 10.0)
NEAR = (6.0, 0.0, 16.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def test_the_iou_is_that_of_areas() -> None:
    np.testing.assert_allclose(
        pairwise_iou([BOX], [BOX, SHIFTED, NEAR, FAR]), [[1, 80 / 120, 40 / 160, 0]]
    )
    assert pairwise_iou([], [BOX]).shape == (0, 1)
    assert pairwise_iou([(1.0, 1.0, 1.0, 1.0)], [(1.0, 1.0, 1.0, 1.0)]).item() == 0


@pytest.mark.parametrize(
    ("truths", "answers", "kinds"),
    [
        ([], [], []),
        ([("car", BOX)], [], ["missed"]),
        ([], [("car", BOX)], ["extra"]),
        ([("car", BOX)], [("car", SHIFTED)], ["loosely placed"]),
        ([("car", BOX)], [("dog", SHIFTED)], ["wrong class"]),
        ([("car", BOX)], [("car", NEAR)], ["badly placed"]),
        ([("car", BOX)], [("dog", NEAR)], ["extra", "missed"]),
        ([("car", BOX)], [("car", FAR)], ["extra", "missed"]),
        ([("car", BOX)], [("car", BOX), ("car", SHIFTED)], ["extra", "right"]),
        ([("car", BOX)], [("dog", BOX), ("car", SHIFTED)], ["extra", "loosely placed"]),
    ],
)
def test_a_pair_has_one_kind(
    truths: list[tuple[str, tuple[float, float, float, float]]],
    answers: list[tuple[str, tuple[float, float, float, float]]],
    kinds: list[str],
) -> None:
    pairs = match([LabelledBox(*each) for each in truths], [LabelledBox(*each) for each in answers])
    assert sorted(pair.kind for pair in pairs) == kinds


@pytest.mark.parametrize(
    ("iou", "credit"), [(0.49, 0), (0.5, 0.1), (0.55, 0.2), (0.74, 0.5), (0.95, 1), (1, 1)]
)
def test_the_credit_of_a_box_is_the_share_of_thresholds_of_coco(iou: float, credit: float) -> None:
    assert coco_credit(iou) == credit


def test_an_ignored_object_is_neither_found_nor_missed() -> None:
    ignored = LabelledBox("car", BOX, is_ignored=True)
    assert match([ignored], []) == []
    assert match([ignored], [LabelledBox("car", SHIFTED)]) == []
