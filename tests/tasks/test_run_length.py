import tracemalloc

import numpy as np
import pytest

from tasks.run_length import decode_mask, encode_mask, encode_rings, place_mask


def test_masks_and_rings() -> None:
    """Their insides are united."""
    squares = tuple(
        ((x, 10.0), (x + 20.0, 10.0), (x + 20.0, 30.0), (x, 30.0)) for x in (10.0, 20.0, 60.0)
    )
    mask = decode_mask(encode_rings(squares, (100, 50)))
    assert mask.shape == (50, 100)
    assert mask.sum() == pytest.approx(30 * 20 + 20 * 20, rel=0.02)
    mask = np.random.default_rng(3).random((37, 53)) > 0.4
    encoded = encode_mask(mask)
    assert encoded.size_hw == (37, 53)
    assert np.array_equal(decode_mask(encoded), mask)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
@pytest.mark.parametrize("left_top", [(0, 0), (3, 0), (0, 5), (7, 11)])
def test_placed_mask(share: float, left_top: tuple[int, int]) -> None:
    left, top = left_top
    part = np.random.default_rng(4).random((29, 23)) < share
    whole = np.zeros((40, 30), dtype=np.bool_)
    whole[top : top + 29, left : left + 23] = part
    assert place_mask(encode_mask(part), left_top, (30, 40)) == encode_mask(whole)


def test_large_mask_is_placed_without_pixels() -> None:
    side = 20_000
    ring = ((0.0, 0.0), (side, 0.0), (side, side), (0.0, side))
    square = encode_rings([ring], (side, side))
    tracemalloc.start()
    placed = place_mask(square, (10, 10), (side + 20, side + 20))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert placed.size_hw == (side + 20, side + 20)
    assert peak_bytes < side**2 / 20
