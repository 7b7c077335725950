import numpy as np
import pytest

from tasks.run_length import decode_mask, encode_mask, encode_rings


def test_mask() -> None:
    mask = np.random.default_rng(3).random((37, 53)) > 0.4
    encoded = encode_mask(mask)
    assert encoded.size_hw == (37, 53)
    assert np.array_equal(decode_mask(encoded), mask)


def test_rings() -> None:
    """Their insides are united."""
    squares = tuple(
        ((x, 10.0), (x + 20.0, 10.0), (x + 20.0, 30.0), (x, 30.0)) for x in (10.0, 20.0, 60.0)
    )
    mask = decode_mask(encode_rings(squares, (100, 50)))
    assert mask.shape == (50, 100)
    assert mask.sum() == pytest.approx(30 * 20 + 20 * 20, rel=0.02)
