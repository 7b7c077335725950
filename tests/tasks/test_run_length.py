import numpy as np
import pytest
from pycocotools import mask as coco

from tasks.run_length import encode_mask, encode_rings


def test_a_mask_comes_back_from_its_run_lengths() -> None:
    mask = np.random.default_rng(3).random((37, 53)) > 0.4
    encoded = encode_mask(mask)
    assert encoded.size_hw == (37, 53)
    decoded = coco.decode({"size": list(encoded.size_hw), "counts": encoded.counts.encode("ascii")})
    assert np.array_equal(decoded.astype(bool), mask)


def test_rings_are_united() -> None:
    squares = tuple(
        ((x, 10.0), (x + 20.0, 10.0), (x + 20.0, 30.0), (x, 30.0)) for x in (10.0, 20.0, 60.0)
    )
    encoded = encode_rings(squares, (100, 50))
    assert encoded.size_hw == (50, 100)
    area = coco.area({"size": [50, 100], "counts": encoded.counts.encode("ascii")})
    assert area == pytest.approx(30 * 20 + 20 * 20, rel=0.02)
