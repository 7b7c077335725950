import numpy as np
import pytest

from laboratory.calibration import smallest_found


def test_smallest_object_is_nearly_as_often_found_as_larger_ones() -> None:
    shares = np.linspace(0.001, 1, 1000)
    half = np.arange(1000) % 2 == 0
    assert smallest_found(shares, (shares > 0.1) | half) == pytest.approx(0.1, abs=0.003)
    assert smallest_found(shares, half & (shares > 0.2)) == pytest.approx(0.2, abs=0.003)
