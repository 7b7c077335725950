from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from diptych_client.geometry import ImageSize, polygons_mask
from tasks.errors import CheckpointFileError
from tasks.paligemma.masks import MaskDecoder, mask_in_image, rings_in_box
from tasks.results import BoxXyxy, Ring
from tasks.run_length import decode_mask
from tests.support.catalog import MASK_DECODER, MASK_DECODER_FILE


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.net(x)
        return x + residual


def reference_decoder() -> nn.Sequential:
    channels = [128, 128, 64, 32, 16]
    upsamplings: list[nn.Module] = []
    for num_in, num_out in pairwise(channels):
        upsamplings += [nn.ConvTranspose2d(num_in, num_out, 4, stride=2, padding=1), nn.ReLU()]
    first = [nn.Conv2d(512, 128, 1), nn.ReLU(), ResidualBlock(), ResidualBlock()]
    return nn.Sequential(*first, *upsamplings, nn.Conv2d(16, 1, 1))


@torch.inference_mode()
def test_field_equals_that_of_torch() -> None:
    with np.load(MASK_DECODER_FILE) as file:
        tensors = {name: torch.from_numpy(file[name]).float() for name in file.files}
    decoder = reference_decoder()
    codebook = tensors.pop("_vq_vae._embedding")
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("decoder."):  # not the encoder
            weights[name.removeprefix("decoder.")] = tensor
    decoder.load_state_dict(weights)
    rng = np.random.default_rng(7)
    for _ in range(20):
        codes = rng.integers(0, 128, 16).tolist()
        grid = codebook[codes].reshape(4, 4, 512).permute(2, 0, 1)[None]
        field = MASK_DECODER.decode(codes)
        assert field.shape == (64, 64)
        assert field.dtype == np.float32
        # float32 sums in another order: 3e-6 seen
        np.testing.assert_allclose(field, decoder(grid)[0, 0].numpy(), atol=1e-4, rtol=0)


def saved(tmp_path: Path, **changes: Any) -> Path:
    """Save the decoder with changed arrays, or without those that are None."""
    path = tmp_path / "vae.npz"
    with np.load(MASK_DECODER_FILE) as file:
        tensors = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: tensor for name, tensor in tensors.items() if tensor is not None})
    return path


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("decoder.6.bias", None, r"has no array decoder.6.bias of shape \(64,\)"),
        ("decoder.0.weight", np.zeros((128, 512)), r"must be finite, .* is \(128, 512\)"),
        ("decoder.12.bias", np.array([np.nan]), r"decoder.12.bias must be finite"),
        ("decoder.12.bias", np.array([object()]), "cannot be read"),  # pickled
    ],
)
def test_bad_array_is_refused(tmp_path: Path, name: str, tensor: Any, message: str) -> None:
    with pytest.raises(CheckpointFileError, match=message):
        MaskDecoder.load(saved(tmp_path, **{name: tensor}))


def test_arrays_of_float32_are_read(tmp_path: Path) -> None:
    with np.load(MASK_DECODER_FILE) as file:
        path = saved(tmp_path, **{name: file[name].astype(np.float32) for name in file.files})
    assert np.array_equal(MaskDecoder.load(path).decode(range(16)), MASK_DECODER.decode(range(16)))


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 broken", b"array"])
def test_file_of_another_form_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "vae.npz"
    if content == b"array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        MaskDecoder.load(path)


IMAGE_WH = (400, 300)
BOX: BoxXyxy = (31.7, 40.2, 335.9, 270.4)


def blob(rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Return a smooth random field: noise of `cells` x `cells`, enlarged."""
    noise = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC))


def signed_area(ring: Ring) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


@pytest.mark.parametrize("cells", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_polygons_agree_with_mask(cells: int, seed: int) -> None:
    field = blob(np.random.default_rng([cells, seed]), cells)
    mask = decode_mask(mask_in_image(field, BOX, IMAGE_WH))
    polygons = polygons_mask(rings_in_box(field, BOX), ImageSize(*IMAGE_WH))
    assert (mask & polygons).sum() / (mask | polygons).sum() > 0.97


def test_full_and_empty_fields() -> None:
    field = np.ones((64, 64), dtype=np.float32)
    (ring,) = rings_in_box(field, BOX)
    x, y = np.array(ring).T
    assert (x.min(), y.min(), x.max(), y.max()) == pytest.approx(BOX)
    assert abs(signed_area(ring)) == pytest.approx((BOX[2] - BOX[0]) * (BOX[3] - BOX[1]))
    mask = decode_mask(mask_in_image(field, BOX, IMAGE_WH))
    rows, columns = np.nonzero(mask)
    # pixel centres in the box
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (32, 335, 40, 269)
    assert mask.sum() == (336 - 32) * (270 - 40)
    field = -np.ones((64, 64), dtype=np.float32)
    assert rings_in_box(field, BOX) == ()
    assert rings_in_box(-field, (5.0, 5.0, 5.0, 5.0)) == ()
    assert not decode_mask(mask_in_image(field, BOX, IMAGE_WH)).any()


def test_holes_run_anticlockwise() -> None:
    field = -np.ones((64, 64), dtype=np.float32)
    field[10:50, 10:50] = 1
    field[20:40, 20:40] = -1
    areas = sorted(signed_area(ring) for ring in rings_in_box(field, (0.0, 0.0, 64.0, 64.0)))
    assert len(areas) == 2
    assert areas[0] < 0 < areas[1]  # y points down: a positive area is clockwise on the screen
    assert areas[1] == pytest.approx(40 * 40, rel=0.01)


def test_field_is_placed_by_its_centres() -> None:
    field = -np.ones((64, 64), dtype=np.float32)
    field[:, :16] = 1
    mask = decode_mask(mask_in_image(field, (0.0, 0.0, 64.0, 64.0), (100, 100)))
    assert mask[:64, :16].all()
    assert mask.sum() == 64 * 16
    enlarged = decode_mask(mask_in_image(field, (0.0, 0.0, 100.0, 100.0), (100, 100)))
    assert enlarged.sum() == 100 * 25


def test_box_smaller_than_a_pixel() -> None:
    field = np.ones((64, 64), dtype=np.float32)
    box = (10.1, 10.1, 10.4, 10.4)
    assert len(rings_in_box(field, box)) == 1
    assert decode_mask(mask_in_image(field, box, IMAGE_WH)).sum() == 0
    assert decode_mask(mask_in_image(field, (10.1, 10.1, 10.6, 10.6), IMAGE_WH)).sum() == 1
