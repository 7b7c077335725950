from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.tensors import stored_dtype
from export.checks.reference import Reference


def test_decoder_weights_are_the_checkpoints(artifacts: Path, checkpoint: Path) -> None:
    weights = load_file(artifacts / "decoder.safetensors")
    assert all(name.startswith("model.language_model.") for name in weights)
    language_model = Reference.load(checkpoint).model.model.language_model
    num_parameters = sum(parameter.numel() for parameter in language_model.parameters())
    assert sum(tensor.numel() for tensor in weights.values()) == num_parameters
    # PaliGemma's checkpoints have older names, which transformers renames while loading.
    original = {}
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        original[name.replace("language_model.model.", "model.language_model.")] = tensor
    for name, tensor in weights.items():
        assert tensor.dtype == original[name].dtype
        assert torch.equal(tensor, original[name])


def test_reference_is_float32_whatever_is_stored(checkpoint: Path) -> None:
    assert {parameter.dtype for parameter in Reference.load(checkpoint).model.parameters()} == {
        torch.float32
    }
    assert stored_dtype(checkpoint) == torch.float16


def test_several_stored_dtypes_are_loaded_as_float32(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1, dtype=torch.bfloat16), "ids": torch.zeros(1, dtype=torch.long)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == torch.bfloat16
    tensors["b"] = torch.zeros(1, dtype=torch.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == torch.float32
