from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from export.scenes import SHAPES, Shape
from laboratory.training.data.mask_samples import sample_masks, shape_mask
from laboratory.training.masks.autoencoder import Codebook, MaskAutoencoder
from laboratory.training.masks.training import MaskTraining, mask_codes, train_mask_autoencoder
from laboratory.training.runs.run_folder import RunFolder
from tasks.paligemma import MaskDecoder
from tests.support.catalog import MASK_DECODER, MASK_DECODER_FILE

ENCODER_SHAPES = {
    "encoder.0": (16, 1, 4, 4),
    "encoder.2": (32, 16, 4, 4),
    "encoder.4": (64, 32, 4, 4),
    "encoder.6": (128, 64, 4, 4),
    **{f"encoder.{block}.net.{layer}": (128, 128, 3, 3) for block in (8, 9) for layer in (0, 2)},
    **{f"encoder.{block}.net.4": (128, 128, 1, 1) for block in (8, 9)},
    "encoder.10": (512, 128, 1, 1),
}
DECODER_LAYERS = (
    "0",
    *(f"{block}.net.{layer}" for block in (2, 3) for layer in (0, 2, 4)),
    "4",
    "6",
    "8",
    "10",
    "12",
)


def random_codes(num_masks: int) -> torch.Tensor:
    return torch.randint(0, 128, (num_masks, 16), generator=torch.Generator().manual_seed(3))


def new_training(folder: Path, num_steps: int) -> MaskTraining:
    torch.manual_seed(0)
    training = MaskTraining(MaskAutoencoder(), RunFolder(folder), num_steps, seed=0, device="cpu")
    training.restore()
    return training


def iou(field: NDArray[np.float32], mask: NDArray[np.float32]) -> float:
    ours = field > 0
    theirs = mask > 0.5
    return float((ours & theirs).sum() / (ours | theirs).sum())


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    """The file of an autoencoder with random weights."""
    torch.manual_seed(0)
    autoencoder = MaskAutoencoder()
    autoencoder.codebook.fit(torch.randn(200, 512))
    autoencoder.save_npz(tmp_path / "vae.npz")
    return tmp_path / "vae.npz"


def test_file_has_the_names_and_shapes_of_the_released_one(random_file: Path) -> None:
    with np.load(random_file) as file:
        shapes = {name: file[name].shape for name in file.files}
        assert {str(file[name].dtype) for name in file.files} == {"float16"}
    assert {name: shapes[f"{name}.weight"] for name in ENCODER_SHAPES} == ENCODER_SHAPES
    layers = [*ENCODER_SHAPES, *(f"decoder.{layer}" for layer in DECODER_LAYERS)]
    assert set(shapes) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")} | {
        "_vq_vae._embedding"
    }


def test_numpy_decoder_gives_the_same_fields(random_file: Path) -> None:
    codes = random_codes(5)
    fields = MaskAutoencoder.load_npz(random_file).decode(codes)
    decoder = MaskDecoder.load(random_file)
    for field, own in zip(fields, codes.tolist(), strict=True):
        # the same half-precision weights; float32 sums in another order
        np.testing.assert_allclose(decoder.decode(own), field.numpy(), atol=1e-3, rtol=0)


def test_encoding_is_the_same_after_saving_and_loading(random_file: Path, tmp_path: Path) -> None:
    masks = torch.from_numpy(sample_masks(np.random.default_rng(0), 4))
    autoencoder = MaskAutoencoder.load_npz(random_file)
    autoencoder.save_npz(tmp_path / "again.npz")
    codes = autoencoder.encode(masks)
    assert codes.shape == (4, 16)
    assert torch.equal(MaskAutoencoder.load_npz(tmp_path / "again.npz").encode(masks), codes)


def test_gradients_bypass_the_quantisation() -> None:
    autoencoder = MaskAutoencoder()
    made = autoencoder(torch.from_numpy(sample_masks(np.random.default_rng(0), 2)))
    made.fields.square().mean().backward()
    first = autoencoder.encoder[0].weight
    assert isinstance(first, torch.Tensor)
    assert first.grad is not None
    assert first.grad.abs().max() > 0


def test_rows_move_to_the_mean_of_their_features() -> None:
    codebook = Codebook()
    codebook.fit(torch.randn(200, 512))
    features = torch.full((6, 512), 5.0) + torch.tensor([-1.0, 0, 1, -1, 0, 1])[:, None]
    for _ in range(200):
        codebook.follow(features, torch.full((6,), 7))
    np.testing.assert_allclose(codebook.rows(torch.tensor(7)), 5.0, atol=1e-3)


def test_only_unused_rows_are_replaced() -> None:
    codebook = Codebook()
    codebook.fit(torch.randn(200, 512))
    before = codebook.rows(torch.arange(128)).clone()
    features = torch.randn(40, 512)
    used = torch.arange(126)
    for _ in range(50):
        codebook.follow(before[used], used)
    codebook.restart(features, min_cluster_size=0.5)
    np.testing.assert_allclose(codebook.rows(used), before[used], atol=1e-4)
    assert torch.equal(codebook.rows(torch.tensor([126, 127])), features[:2])


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = new_training(tmp_path / "whole", 2)
    whole.run(2)
    new_training(tmp_path / "stopped", 2).run(1)
    resumed = new_training(tmp_path / "stopped", 2)
    assert resumed.step == 1
    resumed.run(2)
    for name, tensor in resumed.autoencoder.state_dict().items():
        assert torch.equal(tensor, whole.autoencoder.state_dict()[name]), name


def test_training_restores_a_reset_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    autoencoder = MaskAutoencoder.load_npz(MASK_DECODER_FILE)
    layer = autoencoder.decoder[4]
    assert isinstance(layer, nn.ConvTranspose2d)
    # training all layers from scratch needs about 40 steps to lower the loss
    layer.reset_parameters()
    training = MaskTraining(autoencoder, RunFolder(tmp_path), num_steps=6, seed=0, device="cpu")
    training.restore()
    training.run(6)
    losses = [row["loss"] for row in RunFolder(tmp_path).rows()]
    assert len(losses) == 6
    assert losses[-1] < 0.6 * losses[0]  # measured: 0.96, then 0.40


def test_finished_run_is_reported_and_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "vae.npz"
    reached = train_mask_autoencoder(out, tmp_path, num_steps=1)
    assert "has a finished run" not in capsys.readouterr().out
    assert train_mask_autoencoder(out, tmp_path, num_steps=1) == reached
    assert "has a finished run of 1 steps" in capsys.readouterr().out
    assert len(list(RunFolder(tmp_path).rows())) == 1


def test_masks_fill_their_boxes_and_depend_on_the_seed_only() -> None:
    masks = sample_masks(np.random.default_rng(5), 50)
    assert masks.shape == (50, 1, 64, 64)
    assert masks.min() == 0
    assert masks.max() == 1
    for axis in (2, 3):
        is_covered = masks.max(axis) > 0
        assert is_covered[..., 0].all()
        assert is_covered[..., -1].all()
    assert np.array_equal(masks, sample_masks(np.random.default_rng(5), 50))


@pytest.mark.parametrize("shape", SHAPES)
def test_embedded_autoencoder_reconstructs_the_scenes_shapes(shape: Shape) -> None:
    codes = mask_codes(MaskAutoencoder.load_npz(MASK_DECODER_FILE), shape_mask(shape))
    assert iou(MASK_DECODER.decode(codes), shape_mask(shape)) >= 0.97
