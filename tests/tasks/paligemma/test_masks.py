"""The mask decoder against an independent reading of the published architecture, in torch's own
layers.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.paligemma.masks import MaskDecoder, MaskDecoderError
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
    with pytest.raises(MaskDecoderError, match=r"has no array decoder.6.bias of shape \(64,\)"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(
        tmp_path / "vae.npz",
        **(tensors | {"decoder.0.weight": tensors["decoder.0.weight"][:, :, 0, 0]}),
    )
    with pytest.raises(
        MaskDecoderError, match=r"decoder.0.weight must be finite, .* its shape is \(128, 512\)"
    ):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_tensor_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(tmp_path / "vae.npz", **(tensors | {"decoder.12.bias": np.array([np.nan])}))
    with pytest.raises(MaskDecoderError, match=r"decoder.12.bias must be finite"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    tensors = tensors_of(MASK_DECODER_FILE)
    np.savez(tmp_path / "vae.npz", **(tensors | {"decoder.12.bias": np.array([object()])}))
    with pytest.raises(MaskDecoderError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vae.npz").write_bytes(content)
    with pytest.raises(MaskDecoderError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "vae.npy", np.zeros(3))
    with pytest.raises(MaskDecoderError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npy")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskDecoderError, match="cannot be read"):
        MaskDecoder.load(tmp_path / "vae.npz")
