import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.support.catalog import CATALOG
from tests.support.export_random import PROBES, export_random
from tests.support.random_weights import SHAPES, write_random_checkpoint
from wire.artifacts.manifest import read_manifest, verify_files

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Florence-2-large with a quarter of its pixels: the widths are under test, and full images
    take two minutes.
    """
    small = replace(SHAPES["florence-2-large"], image_size_px=384, num_image_tokens=12 * 12 + 1)
    monkeypatch.setitem(SHAPES, "florence-2-large", small)


@pytest.mark.long
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    "name", ["florence-2-large", "paligemma-3b-mix-224", "paligemma-3b-pt-896"]
)
def test_real_widths_with_few_layers_export_and_pass_parity(name: str, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    manifest = export_random(name, tmp_path / "checkpoint", artifacts)
    assert manifest == read_manifest(artifacts)
    verify_files(artifacts, manifest)
    assert manifest.num_image_tokens == SHAPES[name].num_image_tokens
    assert manifest.image_size_wh == (SHAPES[name].image_size_px,) * 2
    assert manifest.parity["tokens"]["num_prompts"] == PROBES.num_probes


@pytest.mark.parametrize(
    ("name", "num_layers", "width"),
    [
        ("florence-2-base", 6, 768),
        ("florence-2-large", 12, 1024),
        ("paligemma-3b-mix-224", 18, 2048),
        ("paligemma-2-3b-mix-224", 26, 2304),
        ("paligemma-2-10b-mix-224", 42, 3584),
        ("paligemma-2-28b-mix-224", 46, 4608),
    ],
)
def test_unlimited_configuration_has_the_published_size(
    name: str, num_layers: int, width: int
) -> None:
    config = SHAPES[name].config(100).get_text_config()
    assert (config.num_hidden_layers, config.hidden_size) == (num_layers, width)


@pytest.mark.parametrize(
    ("size", "feed_forward", "heads"),
    [("3b", 9216, (8, 4, 256)), ("10b", 14336, (16, 8, 256)), ("28b", 36864, (32, 16, 128))],
)
def test_gemma_2_has_the_published_widths(
    size: str, feed_forward: int, heads: tuple[int, int, int]
) -> None:
    config = SHAPES[f"paligemma-2-{size}-mix-224"].config(1).get_text_config()
    assert config.intermediate_size == feed_forward
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == heads
    assert config.query_pre_attn_scalar == (144 if size == "28b" else 256)


@pytest.mark.parametrize("name", ["florence-2-base", "florence-2-large", "paligemma-2-3b-mix-224"])
def test_parameters_of_the_catalog_are_those_of_the_configuration(name: str) -> None:
    with torch.device("meta"):
        model = _Model.from_config(SHAPES[name].config(100))
    model.tie_weights()
    assert sum(each.numel() for each in model.parameters()) == CATALOG[name].parameters


def test_same_seed_gives_the_same_checkpoint(tmp_path: Path) -> None:
    for place in ("one", "other"):
        write_random_checkpoint("florence-2-base", tmp_path / place, max_layers=1)
    first, second = (
        (tmp_path / place / "model.safetensors").read_bytes() for place in ("one", "other")
    )
    assert first == second
    assert (
        json.loads((tmp_path / "one" / "generation_config.json").read_text())[
            "no_repeat_ngram_size"
        ]
        == 3
    )
