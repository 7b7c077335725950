"""What an export needs, and the memory of released models: counted as the catalog counts, slots as
the decoders hold them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from export.errors import ExportError
from export.resources import (
    SIZES,
    Needs,
    available_memory_bytes,
    check_host,
    memory_table,
    needs_of,
    released_models,
)
from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.models.florence2 import Bart
from runners.models.paligemma import Gemma
from runners.models.weights import DecoderWeights
from tests.support.catalog import CATALOG
from tests.support.export_cli import ROOT
from tests.support.random_weights import SHAPES

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
NEEDS = Needs(is_large=False, memory_bytes=4e9, disk_bytes=2e9, minutes=3)
GB = 1 << 30


def test_needs_have_units() -> None:
    assert str(NEEDS) == "the export needs 4.0 GB of memory, 2.0 GB of disk and about 3 minutes"
    small = replace(NEEDS, disk_bytes=11e6, minutes=0.5)
    assert str(small) == "the export needs 4.0 GB of memory, 11 MB of disk and about a minute"


def test_too_small_a_host_is_refused_with_both_numbers() -> None:
    NEEDS.check(4e9, {Path("/"): 2e9})
    NEEDS.check(None, {})
    with pytest.raises(ExportError, match=r"needs 4\.0 GB of memory; 3\.9 GB are available here"):
        NEEDS.check(3.9e9, {Path("/"): 2e9})
    with pytest.raises(ExportError, match=r"2\.0 GB of disk; 1\.9 GB are free in /some/where"):
        NEEDS.check(4e9, {Path("/some"): 2e9, Path("/some/where"): 1.9e9})
    with pytest.raises(ExportError, match="of memory"):
        check_host(replace(NEEDS, memory_bytes=1e15))
    with pytest.raises(ExportError, match="of disk"):
        check_host(replace(NEEDS, memory_bytes=0, disk_bytes=1e15))


@pytest.mark.parametrize(
    ("model_id", "is_large", "max_gb"),
    [
        ("paligemma-mini", False, 2),
        ("florence-2-base", False, 5),
        ("florence-2-large", False, 13),
        ("paligemma-3b-mix-224", True, 12),
        ("paligemma-3b-mix-448", True, 12),
        ("paligemma-2-10b-mix-224", True, 24),
    ],
)
def test_released_models_stay_below_the_stated_limits(
    model_id: str, is_large: bool, max_gb: float
) -> None:
    needs = needs_of(CATALOG[model_id], num_cores=2)
    assert needs.is_large == is_large
    assert needs.memory_bytes < max_gb * 1e9


def test_attention_over_a_large_image_is_counted() -> None:
    """17.5 GB and an hour with one layer of Gemma (docs/models.md)."""
    needs = needs_of(CATALOG["paligemma-3b-pt-896"], num_cores=2)
    assert 16e9 < needs.memory_bytes < 19e9
    assert 50 < needs.minutes < 90


@pytest.mark.parametrize(
    ("group", "limit", "available"),
    [
        ("pods/one", "max", 8 * GB),
        ("pods/one", str(3 * GB), 2 * GB),  # page cache is free
        ("pods", str(3 * GB), 2 * GB),
        ("pods", str(99 * GB), 8 * GB),
    ],
)
def test_the_memory_is_the_hosts_or_a_control_groups(
    tmp_path: Path, group: str, limit: str, available: int
) -> None:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 << 20} kB\n")
    (proc / "self" / "cgroup").write_text("0::/pods/one\n")
    folder = tmp_path / "cgroup" / group
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{2 * GB}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {GB}\nactive_file 0\n")
    assert available_memory_bytes(proc, tmp_path / "cgroup") == available
    assert available_memory_bytes(tmp_path, tmp_path) is None  # unknown


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_configurations(name: str) -> None:
    shape = next(shape for model_id, shape in SHAPES.items() if model_id.startswith(name))
    config: Any = shape.config(1000)
    with torch.device("meta"):
        model = _Model.from_config(config).model
    vision = nn.ModuleList([model.vision_tower, model.multi_modal_projector])
    size = SIZES[name]
    assert sum(weight.numel() for weight in vision.parameters()) == size.encoder
    assert _num_matrix_weights(vision) == size.encoder_matrices
    assert _num_matrix_weights(model.language_model) == size.decoder_matrices
    assert model.get_input_embeddings().weight.numel() == size.head
    text = config.text_config
    assert text.vocab_size == size.vocabulary
    adapters = Adapters("meta")
    source = model.language_model.state_dict()
    weights = DecoderWeights(source, "float16", torch.device("meta"), adapters=adapters)
    body = Bart if name.startswith("florence") else Gemma
    body(text.to_dict(), weights)
    adapters.open_pool(POOL_RANK, 1 << 60)
    assert adapters.num_bytes_with({}) == size.pool_bytes
    if name.startswith("florence"):  # as many keys and values of cross-attention
        assert size.position_values == 4 * text.decoder_layers * text.d_model
    else:
        num_values = text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        assert size.position_values == 2 * num_values


def _num_matrix_weights(module: nn.Module) -> int:
    linears = {part.weight for part in module.modules() if isinstance(part, nn.Linear)}
    return sum(weight.numel() for weight in linears)


def test_tables_follow_from_the_sizes() -> None:
    models = {model.entry.id: model for model in released_models()}
    assert len(models) == 16
    for model_id in ("florence-2-base", "paligemma-3b-mix-448"):
        model = models[model_id]
        assert model.model_bytes("cuda") == 2 * model.entry.parameters
    base = models["florence-2-base"]
    num_others = base.entry.parameters - base.size.encoder - base.size.decoder_matrices
    expected = base.size.decoder_matrices + base.size.head + 4 * num_others
    assert base.weights_bytes("decoder", "cpu") == expected
    assert memory_table() in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
