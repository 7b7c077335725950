from pathlib import Path

import torch
from safetensors.torch import load_file

from export.checks.reference import Reference


def test_decoder_weights_are_the_language_tensors_each_once(
    artifacts: Path, checkpoint: Path
) -> None:
    model = Reference.load(checkpoint).model
    weights = load_file(artifacts / "decoder.safetensors")
    assert all(name.startswith("model.language_model.") for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == sum(
        parameter.numel() for parameter in model.model.language_model.parameters()
    )


def test_decoder_weights_equal_the_checkpoint(artifacts: Path, checkpoint: Path) -> None:
    weights = load_file(artifacts / "decoder.safetensors")
    original = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {
        tensor.dtype for tensor in original.values()
    }
    # PaliGemma's checkpoints have older names, which transformers renames while loading.
    renamed = {
        name.replace("language_model.model.", "model.language_model."): each
        for name, each in original.items()
    }
    assert all(torch.equal(tensor, renamed[name]) for name, tensor in weights.items())
