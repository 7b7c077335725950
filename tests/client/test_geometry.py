"""Masks from polygons by the even-odd rule, and from run lengths as pycocotools reads them."""

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from diptych_client import ImageSize, RunLengthMask
from diptych_client.geometry import (
    Ring,
    polygons_mask,
    run_length_mask,
    uncompressed_run_lengths,
)
from tests.support.client_answers import HOLE, SIZE, SQUARE

MASKS = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
COORDINATES = st.floats(-5, 25, width=32)
RINGS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=8).map(tuple)


def is_inside(x: float, y: float, rings: list[Ring]) -> bool:
    """Return True if a ray to the left crosses an odd number of edges (Franklin's PNPOLY)."""
    crosses = [
        (y1 > y) != (y2 > y) and (x2 - x1) * (y - y1) / (y2 - y1) + x1 <= x
        for ring in rings
        for (x1, y1), (x2, y2) in pairwise((*ring, ring[0]))
    ]
    return sum(crosses) % 2 == 1


@given(st.lists(RINGS, max_size=3))
def test_a_pixel_is_inside_where_its_centre_is(rings: list[Ring]) -> None:
    mask = polygons_mask(rings, ImageSize(width=20, height=12))
    disagree = [
        (x, y)
        for y in range(12)
        for x in range(20)
        if mask[y, x] != is_inside(x + 0.5, y + 0.5, rings)
    ]
    assert not [
        (x, y)
        for x, y in disagree
        if is_inside(x + 0.49, y + 0.5, rings) == is_inside(x + 0.51, y + 0.5, rings)
    ]  # rounding decides on an edge itself


def test_a_ring_in_a_ring_is_a_hole() -> None:
    mask = polygons_mask([SQUARE, HOLE], SIZE)
    assert mask.shape == (20, 40)
    assert mask.sum() == 10 * 10 - 4 * 4
    assert mask[3, 3]
    assert not mask[5, 5]


def test_no_ring_is_an_empty_mask() -> None:
    assert not polygons_mask([], SIZE).any()


@given(MASKS)
def test_compressed_run_lengths_are_those_of_pycocotools(mask: Any) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    decoded = run_length_mask(RunLengthMask(mask.shape, encoded["counts"].decode()))
    np.testing.assert_array_equal(decoded, mask)


@given(MASKS)
def test_uncompressed_run_lengths_are_those_of_pycocotools(mask: Any) -> None:
    height, width = mask.shape
    encoded = {"size": [height, width], "counts": uncompressed_run_lengths(mask)}
    np.testing.assert_array_equal(
        coco_mask.decode(coco_mask.frPyObjects(encoded, height, width)), mask
    )
