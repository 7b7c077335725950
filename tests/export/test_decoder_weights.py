from pathlib import Path

import torch
from safetensors.torch import load_file

from export.decoder_weights import write_decoder_weights
from export.reference import Reference


def test_decoder_holds_every_language_tensor_once_and_no_vision(artifacts: Path, checkpoint: Path) -> None:
    model = Reference.load(checkpoint, "float32").model
    weights = load_file(artifacts / "decoder.safetensors")
    assert all(name.startswith("model.language_model.") for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == sum(
        parameter.numel() for parameter in model.model.language_model.parameters()
    )


def test_decoder_is_stored_in_the_precision_that_it_runs_in(checkpoint: Path, tmp_path: Path) -> None:
    write_decoder_weights(Reference.load(checkpoint, "bfloat16").model, tmp_path / "decoder.safetensors")
    assert {tensor.dtype for tensor in load_file(tmp_path / "decoder.safetensors").values()} == {torch.bfloat16}
