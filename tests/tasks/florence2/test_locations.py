import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.florence2.locations import NUM_BINS, box_tokens, dequantize, quantize

SIDES = st.integers(1, 20_000)


@given(st.integers(0, NUM_BINS - 1), SIDES)
def test_a_bin_survives_the_way_to_pixels_and_back(bin_index: int, side_px: int) -> None:
    assert quantize(dequantize(bin_index, side_px), side_px) == bin_index


@given(st.floats(0, 1), SIDES)
def test_a_position_comes_back_within_half_a_bin(part: float, side_px: int) -> None:
    position = part * side_px
    assert abs(
        dequantize(quantize(position, side_px), side_px) - position
    ) <= side_px / NUM_BINS / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("position", "expected"), [(-5.0, 0), (0.0, 0), (639.9, 999), (640.0, 999), (9e9, 999)]
)
def test_positions_outside_are_clamped(position: float, expected: int) -> None:
    assert quantize(position, 640) == expected


def test_a_box_is_written_x_before_y() -> None:
    assert (
        box_tokens((64.0, 48.0, 320.0, 480.0), (640, 480)) == "<loc_100><loc_100><loc_500><loc_999>"
    )
