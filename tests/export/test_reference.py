import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.errors import SourceError
from export.reference import Reference


def test_checkpoint_that_lacks_a_weight_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    # transformers itself would go on with random numbers in its place.
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "vision_tower" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 1 weights .*vision_tower"):
        Reference.load(folder, "float32")


def test_checkpoint_whose_weights_are_cut_off_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:10_000])
    with pytest.raises(SourceError, match="transformers cannot load the checkpoint"):
        Reference.load(folder, "float32")


def test_vision_part_stays_float32_beside_a_bfloat16_decoder(checkpoint: Path) -> None:
    model = Reference.load(checkpoint, "bfloat16").model
    assert {parameter.dtype for parameter in model.model.vision_tower.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.model.multi_modal_projector.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.model.language_model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.get_input_embeddings().weight
