"""Outer rings, and rings with fewer points."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from diptych_client.geometry import Ring
from diptych_client.integrations.outlines import outer_rings, simplified_ring
from tests.support.client_answers import FAR_SQUARE, HOLE, SQUARE

COORDINATES = st.floats(-5, 25, width=32)
RINGS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=8).map(tuple)


def test_holes_and_lines_are_no_outer_rings_and_an_island_in_a_hole_is_one() -> None:
    island = ((5.0, 5.0), (6.0, 5.0), (6.0, 6.0))
    assert outer_rings([SQUARE, HOLE, island, FAR_SQUARE, SQUARE[:2]]) == [
        SQUARE,
        island,
        FAR_SQUARE,
    ]


def test_a_simplified_ring_is_within_the_tolerance() -> None:
    circle = tuple(
        (50 + 40 * math.cos(at * math.pi / 180), 50 + 40 * math.sin(at * math.pi / 180))
        for at in range(360)
    )
    few = simplified_ring(circle, 1.0)
    assert set(few) < set(circle)
    assert 8 < len(few) < 30
    middles = [((x1 + x2) / 2, (y1 + y2) / 2) for (x1, y1), (x2, y2) in pairwise((*few, few[0]))]
    assert all(math.dist(middle, (50, 50)) > 40 - 1.0 for middle in middles)


@given(RINGS)
def test_a_simplified_ring_has_points_of_the_ring_in_its_order(ring: Ring) -> None:
    points = iter((*ring, *ring))  # it may begin at another one
    assert all(point in points for point in simplified_ring(ring, 0.5))
    assert simplified_ring(SQUARE, 1.0) == SQUARE
