import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoints.tensors import empty_model, load_checkpoint
from export.checks.reference import Reference
from export.errors import SourceError
from runners.tokens.rules import GenerationRules
from tests.support.export_cli import MODELS
from tests.support.microsoft_form import update_json


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


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "florence-2-mini", tmp_path / "copy"))


@pytest.mark.parametrize("missing", [("eos_token_id",), ("decoder_start_token_id", "bos_token_id")])
def test_missing_ids_are_the_models(missing: tuple[str, ...], copy: Path) -> None:
    update_json(copy / "generation_config.json", **dict.fromkeys(missing))
    for model in (load_checkpoint(copy, torch.float32), empty_model(copy)):
        rules = GenerationRules.of(model.generation_config.to_dict())
        assert rules == GenerationRules.load(MODELS / "florence-2-mini")


def test_ids_of_another_model_are_refused_with_the_repair(copy: Path) -> None:
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    update_json(copy / "generation_config.json", **ids)
    message = (
        "generation_config.json has bos_token_id 2, eos_token_id 1, pad_token_id 0,"
        " decoder_start_token_id 2; the model has bos_token_id 0, eos_token_id 2, pad_token_id 1,"
        " decoder_start_token_id 2: write these ids into the file, or remove the file"
    )
    for read in (partial(load_checkpoint, copy, torch.float32), partial(empty_model, copy)):
        with pytest.raises(SourceError, match=re.escape(message)):
            read()
