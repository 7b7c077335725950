import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from service.label_studio.brush import brush_rle
from tasks.run_length import decode_mask, encode_mask
from tests.support.label_studio_config import brush_pixels

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@given(masks)
def test_decoded_run_lengths_are_the_mask_in_every_channel(mask: NDArray[np.bool_]) -> None:
    pixels = brush_pixels(brush_rle(encode_mask(mask)), mask.shape)
    assert (pixels == np.where(mask, 255, 0)[..., None]).all()


@pytest.mark.parametrize("value", [False, True])
def test_runs_longer_than_the_widest_field_are_split(value: bool) -> None:
    mask = np.full((300, 200), value)
    assert (brush_pixels(brush_rle(encode_mask(mask)), (300, 200)) == value * 255).all()


@given(masks)
def test_masks_survive_encoding(mask: NDArray[np.bool_]) -> None:
    assert (decode_mask(encode_mask(mask)) == mask).all()
