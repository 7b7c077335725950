"""PEFT's folders: names, ranks and factors are converted; what a runner could not reproduce is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runners.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, AdapterError
from runners.artifacts.peft_adapter import read_adapter

LAYER = "model.language_model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
IN, OUT = 6, 4


def pair(layer: str, rank: int = 2, infix: str = "") -> dict[str, Tensor]:
    name = f"base_model.model.{layer}"
    return {
        f"{name}.lora_A{infix}.weight": torch.ones(rank, IN, dtype=torch.bfloat16),
        f"{name}.lora_B{infix}.weight": torch.ones(OUT, rank, dtype=torch.bfloat16),
    }


def converted(folder: Path, tensors: dict[str, Tensor], **config: Any) -> dict[str, Tensor]:
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / WEIGHTS_FILE)
    save_file({f"{LAYER}.weight": torch.zeros(OUT, IN)}, folder / "decoder.safetensors")
    return read_adapter(folder, folder / "decoder.safetensors")


@pytest.mark.parametrize(
    "layer",
    [LAYER, LAYER.replace("model.language_model", "language_model.model")],
    ids=["transformers 5", "older transformers"],
)
@pytest.mark.parametrize("infix", ["", ".default"])
def test_names_of_all_versions_become_those_of_the_artifacts(tmp_path: Path, layer: str, infix: str) -> None:
    tensors = converted(tmp_path, pair(layer, infix=infix))
    assert tensors.keys() == {f"{LAYER}.down", f"{LAYER}.up"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("config", "rank", "factor"),
    [
        ({}, 2, 4.0),
        ({"use_rslora": True}, 2, 8 / math.sqrt(2)),
        ({"rank_pattern": {"q_proj": 4}}, 4, 2.0),
        ({"rank_pattern": {"k_proj": 4}}, 2, 4.0),
        ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 1}}, 2, 0.5),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}, "use_rslora": True}, 4, 3.0),
    ],
    ids=str,
)
def test_the_factor_follows_rank_alpha_and_their_patterns(
    tmp_path: Path, config: dict[str, Any], rank: int, factor: float
) -> None:
    tensors = converted(tmp_path, pair(LAYER, rank), **config)
    assert torch.equal(tensors[f"{LAYER}.down"], torch.ones(rank, IN))
    assert torch.allclose(tensors[f"{LAYER}.up"], torch.full((OUT, rank), factor))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"a_later_option": 3}, "a_later_option is 3"),
        ({"r": "two"}, "not a configuration of a LoRA adapter"),
    ],
    ids=str,
)
def test_an_unsupported_option_is_named(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(AdapterError, match=named):
        converted(tmp_path, pair(LAYER), **config)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (pair("model.vision_tower.blocks.0.fc1"), "changes model.vision_tower.blocks.0.fc1, which is not supported"),
        (pair("lm_head"), "changes lm_head, which is not supported"),
        (pair("model.language_model.embed_tokens"), "embed_tokens, which is not supported"),
        (pair(LAYER.replace("0", "9")), "layers.9.self_attn.q_proj, which its base does not have"),
        (pair(LAYER, 3), r"with rank 2 and the base's weight of \(4, 6\) they must be \(2, 6\) and \(4, 2\)"),
        ({f"base_model.model.{LAYER}.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector"),
        (dict(list(pair(LAYER).items())[:1]), "has only lora_A of"),
        ({}, "adapts no layer"),
    ],
    ids=range(8),
)
def test_weights_that_cannot_be_served_are_named(tmp_path: Path, tensors: dict[str, Tensor], named: str) -> None:
    with pytest.raises(AdapterError, match=named):
        converted(tmp_path, tensors)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG))
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors")
