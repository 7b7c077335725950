"""PEFT's folders: names, ranks and factors are converted; what a runner could not reproduce is
refused by name.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.adapters.peft import Product, read_adapter
from tests.support.hostile_adapters import safetensors_file
from tests.support.peft_folders import (
    CONFIG,
    EMBEDDINGS,
    IN,
    LAYER,
    LIMITS,
    OUT,
    converted,
    pair,
    parts,
    write,
)
from wire.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, AdapterError, AdapterLimits


@pytest.mark.parametrize(
    "layer",
    [LAYER, LAYER.replace("model.language_model", "language_model.model")],
    ids=["transformers 5", "older transformers"],
)
@pytest.mark.parametrize("infix", ["", ".default"])
def test_names_of_all_versions_become_those_of_the_artifacts(
    tmp_path: Path, layer: str, infix: str
) -> None:
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
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}, "use_rslora": True},
            4,
            3.0,
        ),
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
    ("tensors", "named"),
    [
        (
            {f"base_model.model.{LAYER}.weight": torch.ones(OUT, IN)},
            "q_proj.weight, which is not supported",
        ),
        (
            pair("lm_head", 3),
            r"lora_B of lm_head .* with rank 2 and the base's weight of \(4, 6\) they must be",
        ),
        (pair(EMBEDDINGS), "embed_tokens, which is not supported: copies of it"),
        (
            {f"base_model.model.{EMBEDDINGS}.lora_embedding_A": torch.ones(2, OUT)},
            r"embed_tokens.lora_embedding_A, .* would take 0.0 MB in float32, 50.0% of the decoder",
        ),
        (pair("another.layer"), "another.layer, which is not supported; allowed are lora_A"),
        (pair(LAYER.replace("0", "9")), "layers.9.self_attn.q_proj, which its base does not have"),
        (
            pair(LAYER, 3),
            r"with rank 2 and the base's weight of \(4, 6\) they must be \(2, 6\) and \(4, 2\)",
        ),
        (
            {f"base_model.model.{LAYER}.lora_magnitude_vector": torch.ones(4)},
            "lora_magnitude_vector",
        ),
        (dict(list(pair(LAYER).items())[:1]), "has only lora_A of"),
        ({}, "adapts no layer"),
    ],
    ids=range(10),
)
def test_weights_that_cannot_be_served_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], named: str
) -> None:
    with pytest.raises(AdapterError, match=named):
        converted(tmp_path, tensors)


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("model.vision_tower.blocks.0.fc1", "model.vision_tower.blocks.0.fc1.weight"),
        ("model.vision_tower.vision_model.encoder.fc1", "model.vision_tower.encoder.fc1.weight"),
        ("vision_tower.vision_model.encoder.fc1", "model.vision_tower.encoder.fc1.weight"),
        ("multi_modal_projector.linear", "model.multi_modal_projector.linear.weight"),
    ],
)
def test_layers_of_the_vision_part_are_kept_apart(tmp_path: Path, layer: str, weight: str) -> None:
    found = parts(tmp_path, pair(LAYER) | pair(layer))
    assert found.language.keys() == {f"{LAYER}.down", f"{LAYER}.up"}
    assert found.vision.weights == (weight,)
    assert torch.equal(
        found.vision.products[weight].added_to(torch.ones(OUT, IN)),
        torch.full((OUT, IN), 1 + 2 * 4.0),
    )


def test_weights_of_modules_to_save_are_taken_whole(tmp_path: Path) -> None:
    saved = {
        f"base_model.model.multi_modal_projector.linear.{name}": torch.ones(3)
        for name in ("weight", "bias")
    }
    found = parts(tmp_path, saved, modules_to_save=["multi_modal_projector"])
    assert not found.language
    assert found.vision.weights == tuple(
        f"model.multi_modal_projector.linear.{name}" for name in ("bias", "weight")
    )


@pytest.mark.parametrize(
    ("tensors", "modules", "named"),
    [
        (
            {"base_model.model.lm_head.weight": torch.ones(2)},
            ["lm_head"],
            r"changes lm_head.weight, which is not .* would take 0.0 MB in float32, 50.0% of the",
        ),
        (
            {"base_model.model.vision_tower.norm.weight": torch.ones(2)},
            None,
            "changes vision_tower.norm.weight, which",
        ),
        (
            {"base_model.model.vision_tower.norm.weight": torch.ones(2)},
            ["norm", "linear"],
            r"modules_to_save is \['norm', 'linear'\].* linear has no weights",
        ),
        (
            pair("vision_tower.norm")
            | {"base_model.model.vision_tower.norm.weight": torch.ones(2)},
            ["norm"],
            "both a product for model.vision_tower.norm.weight and the weight itself",
        ),
    ],
    ids=["output head", "not in modules_to_save", "without weights", "both"],
)
def test_whole_weights_that_cannot_be_served_are_named(
    tmp_path: Path, tensors: dict[str, Tensor], modules: list[str] | None, named: str
) -> None:
    with pytest.raises(AdapterError, match=named):
        parts(tmp_path, tensors, modules_to_save=modules)


def test_a_runner_refuses_a_vision_part_and_names_the_command(tmp_path: Path) -> None:
    write(tmp_path, pair(LAYER) | pair("model.multi_modal_projector.linear"))
    with pytest.raises(AdapterError) as refused:
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)
    (line,) = str(refused.value).splitlines()
    assert "it changes model.multi_modal_projector.linear.weight" in line
    assert "run python -m export" in line


@pytest.mark.parametrize(
    ("rank", "weight", "named"),
    [
        (2, None, "changes vision_tower.conv, which its base does not have"),
        (
            2,
            (4, 1, 3, 3),
            "changes vision_tower.conv, a convolution in groups, which is not supported",
        ),
        (3, (4, 6, 3, 3), r"must be \(3, 6, 3, 3\) and \(4, 3, 1, 1\)"),
        (2, (4, 6, 5, 5), r"must be \(2, 6, 5, 5\) and \(4, 2, 1, 1\)"),
    ],
)
def test_a_product_that_does_not_fit_its_layer_is_refused(
    rank: int, weight: tuple[int, ...] | None, named: str
) -> None:
    product = Product("vision_tower.conv", rank, torch.ones(2, 6, 3, 3), torch.ones(4, 2, 1, 1))
    with pytest.raises(AdapterError, match=named):
        product.check(weight)
    Product("vision_tower.conv", 2, product.down, product.up).check((4, 6, 3, 3))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG))
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)


A_NAME, B_NAME = pair(LAYER)
SIDES = {A_NAME: [2, IN], B_NAME: [OUT, 2]}


def header(
    dtype: str = "F32", num_bytes: int = 4, shapes: dict[str, list[int]] = SIDES
) -> dict[str, Any]:
    """Return the header of a file with tensors one after the other."""
    rows = dict[str, Any]()
    start = 0
    for name, shape in shapes.items():
        end = start + math.prod(shape) * num_bytes
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    return rows


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "cannot be read as safetensors"),
        (
            (1 << 63).to_bytes(8, "little"),
            "has a header of 9223372036854775808 bytes; 1000000 are allowed",
        ),
        ((1_000_001).to_bytes(8, "little") + b" " * 100, "has a header of 1000001 bytes"),
        (safetensors_file(header(), 79), "cannot be read as safetensors"),
        (
            safetensors_file(header() | {B_NAME: header()[A_NAME]}, 48),
            "cannot be read as safetensors",
        ),
        (
            safetensors_file(header(shapes=SIDES | {A_NAME: [0, 1 << 62, 1 << 62]}), 32),
            "cannot be read as safetensors",
        ),
        (
            safetensors_file(header(shapes=SIDES | {A_NAME: [1 << 62, IN]}), 80),
            "cannot be read as safetensors",
        ),
        (safetensors_file(header("X32"), 80), "cannot be read as safetensors"),
        (
            safetensors_file(header("I32"), 80),
            f"has {A_NAME} as torch.int32; it must be floating-point",
        ),
        (b" " * 10_001, "has 10001 bytes; at most 10000 are allowed"),
        (
            safetensors_file(header("F8_E5M2", 1, SIDES | {A_NAME: [2_500, 1]}), 2_508),
            "has weights of 10032 bytes in float32; at most 10000",
        ),
        (safetensors_file({}), "adapts no layer"),
    ],
    ids=range(12),
)
def test_a_file_that_is_not_in_order_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    write(tmp_path, pair(LAYER))
    (tmp_path / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match=named):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)


@pytest.mark.parametrize(
    "names", [[f"{index}" for index in range(2_049)], ["a" * 301]], ids=["many", "long"]
)
def test_the_tensors_of_an_adapter_are_bounded_in_number_and_name(
    tmp_path: Path, names: list[str]
) -> None:
    limits = AdapterLimits(max_bytes=1_000_000)
    write(tmp_path, {name: torch.ones(1) for name in names})
    with pytest.raises(
        AdapterError,
        match=f"has {len(names)} tensors; allowed are 2048 tensors with names of at most",
    ):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", limits)


def test_the_reader_opens_no_fifo_in_the_place_of_weights(tmp_path: Path) -> None:
    write(tmp_path, pair(LAYER))
    (tmp_path / WEIGHTS_FILE).unlink()
    os.mkfifo(tmp_path / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=f"{WEIGHTS_FILE} must be a regular file"):
        read_adapter(tmp_path, tmp_path / "decoder.safetensors", LIMITS)
