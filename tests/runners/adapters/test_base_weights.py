"""The tied head of a base, and Microsoft's names of its layers."""

from pathlib import Path

import pytest
import torch

from runners.adapters.peft import BaseWeights
from tests.support.peft_folders import EMBEDDINGS, IN, OUT, converted, pair, parts
from wire.artifacts.adapter_folder import AdapterError


@pytest.mark.parametrize("name", ["lm_head", "language_model.lm_head"])
def test_a_product_for_the_tied_head_fits_the_embeddings(tmp_path: Path, name: str) -> None:
    tensors = converted(tmp_path, pair(name))
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "lm_head.down": (2, IN),
        "lm_head.up": (OUT, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["lm_head.base_layer", "language_model.lm_head.base_layer", "lm_head", EMBEDDINGS]
)
def test_copies_of_the_head_and_the_embeddings_change_nothing(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    own = torch.arange(OUT * IN).view(OUT, IN).to(dtype)
    tensors = pair("lm_head") | {f"base_model.model.{name}.weight": own}
    assert converted(tmp_path, tensors).keys() == {"lm_head.down", "lm_head.up"}
    tensors[f"base_model.model.{name}.weight"] = own + 1
    with pytest.raises(AdapterError, match=f"changes {name}.weight, which is not supported: copi"):
        converted(tmp_path, tensors)


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("convs.0.proj", "convs.0.conv"),
        ("blocks.1.0.spatial_block.window_attn.fn.qkv", "blocks.1.0.spatial_block.window_attn.qkv"),
        (
            "blocks.1.0.channel_block.channel_attn.fn.proj",
            "blocks.1.0.channel_block.channel_attn.proj",
        ),
        ("blocks.1.0.channel_block.ffn.fn.net.fc2", "blocks.1.0.channel_block.ffn.fc2"),
        ("blocks.1.0.channel_block.conv1.fn.dw", "blocks.1.0.channel_block.conv1"),
    ],
)
def test_microsofts_names_of_the_vision_tower_become_those_of_transformers(
    tmp_path: Path, layer: str, weight: str
) -> None:
    found = parts(tmp_path, pair(f"vision_tower.{layer}"))
    assert found.vision.weights == (f"model.vision_tower.{weight}.weight",)


def test_microsofts_modules_to_save_become_the_projectors(tmp_path: Path) -> None:
    saved = {
        "base_model.model.image_proj_norm.weight": torch.ones(3),
        "base_model.model.image_pos_embed.row_embeddings.weight": torch.ones(3),
    }
    found = parts(tmp_path, saved, modules_to_save=["image_proj_norm", "image_pos_embed"])
    projector = "model.multi_modal_projector"
    assert set(found.vision.weights) == {
        f"{projector}.image_proj_norm.weight",
        f"{projector}.image_position_embed.row_embeddings.weight",
    }


@pytest.mark.parametrize(("num_missing", "num_rows"), [(0, 10), (1, 11), (63, 73), (64, 10)])
def test_a_head_is_padded_by_what_an_export_rounds_up(num_missing: int, num_rows: int) -> None:
    base = BaseWeights(Path("none"), {"lm_head.weight": (10 + num_missing, IN)}, "none")
    assert len(base.padded(torch.ones(10, 2))) == num_rows
