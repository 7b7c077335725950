"""Masks as pycocotools has them, simpler outlines, and boxes that are the same object."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from diptych_client import ImageSize, RunLengthMask
from diptych_client.geometry import (
    BoxXyxy,
    Ring,
    compressed_run_lengths,
    polygons_mask,
    run_length_mask,
    uncompressed_run_lengths,
)
from diptych_client.integrations.outlines import outer_rings, simplified_ring
from diptych_client.matching import LabelledBox, coco_credit, match, pairwise_iou
from tests.support.client_answers import FAR_SQUARE, HOLE, SIZE, SQUARE

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
COORDINATES = st.floats(-5, 25, width=32)
RINGS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=8).map(tuple)


def is_inside(x: float, y: float, rings: list[Ring]) -> bool:
    """Return True if a ray to the left crosses an odd number of edges (Franklin's PNPOLY)."""
    num_crossed = 0
    for ring in rings:
        for (x1, y1), (x2, y2) in pairwise((*ring, ring[0])):
            if (y1 > y) != (y2 > y):
                num_crossed += (x2 - x1) * (y - y1) / (y2 - y1) + x1 <= x
    return num_crossed % 2 == 1


@given(st.lists(RINGS, max_size=3))
def test_pixel_is_inside_where_its_centre_is(rings: list[Ring]) -> None:
    mask = polygons_mask(rings, ImageSize(width=20, height=12))
    for y, x in np.ndindex(12, 20):
        sides = {is_inside(x + offset, y + 0.5, rings) for offset in (0.49, 0.5, 0.51)}
        assert len(sides) == 2 or mask[y, x] in sides  # rounding decides on an edge itself


def test_ring_in_a_ring_is_a_hole() -> None:
    mask = polygons_mask([SQUARE, HOLE], SIZE)
    assert (mask.shape, mask.sum()) == ((20, 40), 10 * 10 - 4 * 4)
    assert mask[3, 3]
    assert not mask[5, 5]
    assert not polygons_mask([], SIZE).any()


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask: Any) -> None:
    height, width = mask.shape
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    decoded = run_length_mask(RunLengthMask(mask.shape, encoded["counts"].decode()))
    np.testing.assert_array_equal(decoded, mask)
    runs = uncompressed_run_lengths(mask)
    assert compressed_run_lengths(runs) == encoded["counts"].decode()
    plain = {"size": [height, width], "counts": runs}
    decoded = coco_mask.decode(coco_mask.frPyObjects(plain, height, width))
    np.testing.assert_array_equal(decoded, mask)


def test_outer_rings_are_neither_holes_nor_lines() -> None:
    island = ((5.0, 5.0), (6.0, 5.0), (6.0, 6.0))
    rings = outer_rings([SQUARE, HOLE, island, FAR_SQUARE, SQUARE[:2]])
    assert rings == [SQUARE, island, FAR_SQUARE]


@given(RINGS)
def test_simplified_ring_has_points_of_the_ring_in_its_order(ring: Ring) -> None:
    points = iter((*ring, *ring))  # it may begin at another one
    assert all(point in points for point in simplified_ring(ring, 0.5))
    assert simplified_ring(SQUARE, 1.0) == SQUARE
    (x1, y1), *others = SQUARE
    assert simplified_ring(((x1, y1), ((x1 + 12) / 2, y1 + 0.9), *others), 1.0) == SQUARE


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
