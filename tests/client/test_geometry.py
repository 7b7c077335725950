"""Masks as pycocotools has them, simpler outlines, and boxes that are the same object."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from diptych_client import ImageSize, RunLengthMask
from diptych_client.geometry import Ring, polygons_mask, run_length_mask, uncompressed_run_lengths
from diptych_client.integrations.outlines import outer_rings, simplified_ring
from diptych_client.tools.matching import LabelledBox, match
from tests.support.client_answers import FAR_SQUARE, HOLE, SQUARE

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


@given(MASKS)
def test_run_lengths_are_those_of_pycocotools(mask: Any) -> None:
    height, width = mask.shape
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    decoded = run_length_mask(RunLengthMask(mask.shape, encoded["counts"].decode()))
    np.testing.assert_array_equal(decoded, mask)
    runs = uncompressed_run_lengths(mask)
    plain = {"size": [height, width], "counts": runs}
    decoded = coco_mask.decode(coco_mask.frPyObjects(plain, height, width))
    np.testing.assert_array_equal(decoded, mask)


def test_outer_rings_have_few_points_and_are_neither_holes_nor_lines() -> None:
    island = ((5.0, 5.0), (6.0, 5.0), (6.0, 6.0))
    rings = outer_rings([SQUARE, HOLE, island, FAR_SQUARE, SQUARE[:2]])
    assert rings == [SQUARE, island, FAR_SQUARE]
    (x1, y1), *others = SQUARE
    middle = (x1 + 12) / 2
    assert simplified_ring(((x1, y1), (middle, y1 + 0.9), *others), 1.0) == SQUARE
    assert len(simplified_ring(((x1, y1), (middle, y1 + 1.1), *others), 1.0)) == 5


FAR = LabelledBox("car", (50.0, 50.0, 60.0, 60.0))


def part(share: float, label: str = "car") -> LabelledBox:
    """Return a part of the box, which has this IoU with it."""
    return LabelledBox(label, (0.0, 0.0, 10.0 * share, 10.0))


@pytest.mark.parametrize(
    ("share", "kind", "credit"),
    [
        *((0.09, "missed", 0), (0.1, "badly placed", 0), (0.49, "badly placed", 0)),
        *((0.5, "loosely placed", 0.1), (0.55, "loosely placed", 0.2)),
        *((0.74, "loosely placed", 0.5), (0.75, "right", 0.6), (0.95, "right", 1), (1, "right", 1)),
    ],
)
def test_overlap_decides_kind_and_credit(share: float, kind: str, credit: float) -> None:
    pair, *_ = match([part(1)], [part(share)])
    assert (pair.kind, pair.credit) == (kind, credit)
    pairs = match([replace(part(1), is_ignored=True)], [part(share)])
    assert [pair.kind for pair in pairs] == ([] if share >= 0.1 else ["extra"])


@pytest.mark.parametrize(
    ("truths", "answers", "kinds"),
    [
        ([], [], []),
        ([part(1)], [], ["missed"]),
        ([], [part(1)], ["extra"]),
        ([part(1)], [part(0.6, "dog")], ["wrong class"]),
        ([part(1)], [part(0.4, "dog")], ["extra", "missed"]),
        ([part(1)], [FAR], ["extra", "missed"]),
        ([part(0)], [part(0)], ["extra", "missed"]),
        ([part(1)], [part(0.8), part(1)], ["extra", "right"]),
        ([part(1)], [part(1, "dog"), part(0.6)], ["extra", "loosely placed"]),
        ([part(1), part(1, "dog")], [part(1, "dog")], ["missed", "right"]),
    ],
)
def test_pair_has_one_kind(
    truths: list[LabelledBox], answers: list[LabelledBox], kinds: list[str]
) -> None:
    pairs = match(truths, answers)
    assert sorted(pair.kind for pair in pairs) == kinds
    assert sorted(pair.truth for pair in pairs if pair.truth is not None) == [*range(len(truths))]
    for pair in pairs:
        assert (pair.credit > 0) == (pair.kind in ("right", "loosely placed"))
