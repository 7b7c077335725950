from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor, nn

from tasks.errors import CheckpointFileError
from tasks.paligemma.masks import MaskDecoder, mask_in_image, rings_in_box
from tasks.results import BoxXyxy, Ring
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
    upsamplings = [
        layer
        for num_in, num_out in pairwise(channels)
        for layer in (nn.ConvTranspose2d(num_in, num_out, 4, stride=2, padding=1), nn.ReLU())
    ]
    first = [nn.Conv2d(512, 128, 1), nn.ReLU(), ResidualBlock(), ResidualBlock()]
    return nn.Sequential(*first, *upsamplings, nn.Conv2d(16, 1, 1))


@torch.inference_mode()
def test_the_field_is_that_of_torchs_layers() -> None:
    with np.load(MASK_DECODER_FILE) as file:
        tensors = {name: torch.from_numpy(file[name]).float() for name in file.files}
    decoder = reference_decoder()
    codebook = tensors.pop("_vq_vae._embedding")
    # not the encoder
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
    decoder.load_state_dict({name.removeprefix("decoder."): tensor for name, tensor in own.items()})
    rng = np.random.default_rng(7)
    for _ in range(20):
        codes = rng.integers(0, 128, 16).tolist()
        grid = codebook[codes].reshape(4, 4, 512).permute(2, 0, 1)[None]
        field = MASK_DECODER.decode(codes)
        assert field.shape == (64, 64)
        assert field.dtype == np.float32
        # float32 sums in another order: 3e-6 seen
        np.testing.assert_allclose(field, decoder(grid)[0, 0].numpy(), atol=1e-4, rtol=0)


def tensors_of(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def test_float32_files_are_read_too(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "vae.npz",
        **{name: each.astype(np.float32) for name, each in tensors_of(MASK_DECODER_FILE).items()},
    )
    codes = range(16)
    assert np.array_equal(
        MaskDecoder.load(tmp_path / "vae.npz").decode(codes), MASK_DECODER.decode(codes)
    )


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    del tensors["decoder.6.bias"]
    np.savez(tmp_path / "vae.npz", **tensors)
    with pytest.raises(CheckpointFileError, match=r"has no array decoder.6.bias of shape \(64,\)"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(
        tmp_path / "vae.npz",
        **(tensors | {"decoder.0.weight": tensors["decoder.0.weight"][:, :, 0, 0]}),
    )
    with pytest.raises(
        CheckpointFileError, match=r"decoder.0.weight must be finite, .* its shape is \(128, 512\)"
    ):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_tensor_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(tmp_path / "vae.npz", **(tensors | {"decoder.12.bias": np.array([np.nan])}))
    with pytest.raises(CheckpointFileError, match=r"decoder.12.bias must be finite"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(tmp_path / "vae.npz", **(tensors | {"decoder.12.bias": np.array([object()])}))
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vae.npz").write_bytes(content)
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vae.npy", np.zeros(3))
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npy")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFileError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")


IMAGE_WH = (400, 300)
BOX: BoxXyxy = (31.7, 40.2, 335.9, 270.4)
OVERSAMPLING = 8


def blob(rng: np.random.Generator, cells: int) -> NDArray[np.float32]:
    """Return a smooth random field: noise of `cells` x `cells`, enlarged."""
    noise = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC))


def rasterised(rings: tuple[Ring, ...]) -> NDArray[np.bool_]:
    """Return the pixels more than half covered under the even-odd rule."""
    size = (IMAGE_WH[0] * OVERSAMPLING, IMAGE_WH[1] * OVERSAMPLING)
    covered = Image.new("1", size)
    for ring in rings:
        one = Image.new("1", size)
        ImageDraw.Draw(one).polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in ring], fill=1)
        covered = ImageChops.logical_xor(covered, one)
    height = IMAGE_WH[1]
    width = IMAGE_WH[0]
    fine = np.asarray(covered).reshape(height, OVERSAMPLING, width, OVERSAMPLING)
    shares: NDArray[np.float64] = fine.mean(axis=(1, 3))
    return shares > 0.5


def signed_area(ring: Ring) -> float:
    x, y = np.array(ring).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


@pytest.mark.parametrize("cells", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_polygons_and_mask_of_a_field_agree(cells: int, seed: int) -> None:
    field = blob(np.random.default_rng([cells, seed]), cells)
    mask = mask_in_image(field, BOX, IMAGE_WH)
    polygons = rasterised(rings_in_box(field, BOX))
    assert (mask & polygons).sum() / (mask | polygons).sum() > 0.97


def test_a_full_field_is_its_box() -> None:
    field = np.ones((64, 64), dtype=np.float32)
    (ring,) = rings_in_box(field, BOX)
    x, y = np.array(ring).T
    assert (x.min(), y.min(), x.max(), y.max()) == pytest.approx(BOX)
    assert abs(signed_area(ring)) == pytest.approx((BOX[2] - BOX[0]) * (BOX[3] - BOX[1]))
    mask = mask_in_image(field, BOX, IMAGE_WH)
    rows, columns = np.nonzero(mask)
    # pixel centres in the box
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (32, 335, 40, 269)
    assert mask.sum() == (336 - 32) * (270 - 40)


def test_no_point_lies_beyond_the_box_by_rounding() -> None:
    box = (371.797, 71.4498, 612.1008, 488.9517)
    field = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    points = np.concatenate(rings_in_box(field, box))
    assert (*points.min(axis=0), *points.max(axis=0)) == box


def test_an_empty_field_has_no_rings_and_no_pixel() -> None:
    field = -np.ones((64, 64), dtype=np.float32)
    assert rings_in_box(field, BOX) == ()
    assert not mask_in_image(field, BOX, IMAGE_WH).any()


def test_outer_rings_run_clockwise_and_holes_anticlockwise() -> None:
    field = -np.ones((64, 64), dtype=np.float32)
    field[10:50, 10:50] = 1
    field[20:40, 20:40] = -1
    areas = sorted(signed_area(ring) for ring in rings_in_box(field, (0.0, 0.0, 64.0, 64.0)))
    assert len(areas) == 2
    assert areas[0] < 0 < areas[1]  # y points down: a positive area is clockwise on the screen
    assert areas[1] == pytest.approx(40 * 40, rel=0.01)


def test_a_field_is_placed_by_the_centres_of_its_cells() -> None:
    field = -np.ones((64, 64), dtype=np.float32)
    field[:, :16] = 1
    mask = mask_in_image(field, (0.0, 0.0, 64.0, 64.0), (100, 100))
    assert mask[:64, :16].all()
    assert mask.sum() == 64 * 16
    enlarged = mask_in_image(field, (0.0, 0.0, 100.0, 100.0), (100, 100))
    assert enlarged.sum() == 100 * 25


def test_the_samples_at_the_border_decide_about_the_pixels_there() -> None:
    field = np.full((64, 64), -1, dtype=np.float32)
    field[[0, -1], :] = field[:, [0, -1]] = 1
    mask = mask_in_image(field, (0.0, 0.0, 64.0, 64.0), (64, 64))
    assert np.array_equal(mask, field > 0)


def test_a_box_smaller_than_a_pixel_has_polygons_and_at_most_a_pixel() -> None:
    field = np.ones((64, 64), dtype=np.float32)
    box = (10.1, 10.1, 10.4, 10.4)
    assert len(rings_in_box(field, box)) == 1
    assert mask_in_image(field, box, IMAGE_WH).sum() == 0
    assert mask_in_image(field, (10.1, 10.1, 10.6, 10.6), IMAGE_WH).sum() == 1
