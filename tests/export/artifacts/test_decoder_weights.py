from pathlib import Path

import torch
from safetensors.torch import load_file

from export.checks.reference import Reference


def test_decoder_holds_every_language_tensor_once_and_no_vision(artifacts: Path, checkpoint: Path) -> None:
    model = Reference.load(checkpoint).model
    weights = load_file(artifacts / "decoder.safetensors")
    assert all(name.startswith("model.language_model.") for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == sum(
        parameter.numel() for parameter in model.model.language_model.parameters()
    )


def test_decoder_is_stored_as_the_checkpoint_has_it(artifacts: Path, checkpoint: Path) -> None:
    weights, original = load_file(artifacts / "decoder.safetensors"), load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {tensor.dtype for tensor in original.values()}
    # PaliGemma's checkpoints have transformers' names of before; it gives them its new ones as it loads.
    renamed = {name.replace("language_model.model.", "model.language_model."): each for name, each in original.items()}
    assert all(torch.equal(tensor, renamed[name]) for name, tensor in weights.items())
