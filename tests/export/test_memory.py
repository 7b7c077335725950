"""The memory of the released models: counted as the catalog counts, slots as the decoders keep
them.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from export.resources import SIZES, memory_table, released_models
from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.models.florence2 import Bart
from runners.models.paligemma import Gemma
from runners.models.weights import DecoderWeights
from tests.support.export_cli import ROOT
from tests.support.random_weights import SHAPES

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types


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
    assert config.text_config.vocab_size == size.vocabulary
    adapters = Adapters("meta")
    source = model.language_model.state_dict()
    weights = DecoderWeights(source, "float16", torch.device("meta"), adapters=adapters)
    body = Bart if name.startswith("florence") else Gemma
    body(config.text_config.to_dict(), weights)
    adapters.open_pool(POOL_RANK, 1 << 60)
    assert adapters.num_bytes_with({}) == size.pool_bytes
    text = config.text_config
    if name.startswith("florence"):  # as many keys and values of cross-attention
        assert size.position_values == 4 * text.decoder_layers * text.d_model
    else:
        num_values = text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        assert size.position_values == 2 * num_values


def _num_matrix_weights(module: nn.Module) -> int:
    linears = {part.weight for part in module.modules() if isinstance(part, nn.Linear)}
    return sum(weight.numel() for weight in linears)


@pytest.mark.parametrize("model_id", ["florence-2-base", "paligemma-3b-mix-448"])
def test_parts_sum_to_the_entrys_parameters(model_id: str) -> None:
    (memory,) = [model for model in released_models() if model.entry.id == model_id]
    parts = [memory.weights_bytes(part, "cuda") for part in ("encoder", "decoder")]
    assert sum(parts) == 2 * memory.entry.parameters == memory.model_bytes("cuda")


def test_int8_keeps_other_weights_in_float32_and_adds_the_head() -> None:
    base = released_models()[0]
    num_others = base.entry.parameters - base.size.encoder - base.size.decoder_matrices
    expected = base.size.decoder_matrices + base.size.head + 4 * num_others
    assert base.weights_bytes("decoder", "cpu") == expected


def test_operations_guide_has_the_current_table() -> None:
    assert len(released_models()) == 16
    assert memory_table() in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
