import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.tensors import stored_dtype
from export.checks.reference import Reference
from export.errors import SourceError


def test_checkpoint_that_lacks_a_weight_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    # transformers itself would continue with random weights.
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "vision_tower" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks 1 weights .*vision_tower"):
        Reference.load(folder)


def test_truncated_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").write_bytes(
        (checkpoint / "model.safetensors").read_bytes()[:10_000]
    )
    with pytest.raises(SourceError, match="weights cannot be read"):
        Reference.load(folder)


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
