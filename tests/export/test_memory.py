"""The memory of the released models: counted as the catalog counts, slots as the decoders keep
them.
"""

import pytest
from transformers import AutoConfig

from export.memory import ModelSize, memory_tables, model_sizes, num_position_values
from runners.kv_cache.slot_cache import SlotCache
from runners.models.load import load_decoder
from tests.support.export_cli import MODELS, ROOT, ModelStore


@pytest.fixture(scope="module")
def sizes() -> dict[str, ModelSize]:
    return {size.entry.id: size for size in model_sizes()}


def test_parts_sum_to_the_parameters_of_the_catalog(sizes: dict[str, ModelSize]) -> None:
    assert len(sizes) == 16
    for size in sizes.values():
        assert sum(part.num_parameters for part in size.parts.values()) == size.entry.parameters


@pytest.mark.parametrize(
    ("model_id", "family"), [("florence-2-mini", "florence2"), ("paligemma-mini", "paligemma")]
)
def test_values_match_the_kv_cache_of_the_decoder(
    exported: ModelStore, model_id: str, family: str
) -> None:
    decoder = load_decoder(exported.newest(model_id), family, "float32", "cpu")  # type: ignore[arg-type]
    num_values = SlotCache(decoder.shape, 1).num_bytes // decoder.shape.dtype.itemsize
    config = AutoConfig.from_pretrained(MODELS / model_id)
    assert num_position_values(config) * config.text_config.max_position_embeddings == num_values


def test_int8_keeps_other_weights_in_float32_and_adds_the_tied_head(
    sizes: dict[str, ModelSize],
) -> None:
    decoder = sizes["florence-2-base"].parts["decoder"]
    embedding = 51328 * 768
    assert decoder.num_tied == embedding
    assert decoder.num_bytes("int8") == decoder.num_matrix + embedding + 4 * decoder.num_other
    assert decoder.num_bytes("float16") == 2 * decoder.num_parameters


def test_operations_guide_has_the_current_tables() -> None:
    assert memory_tables() in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
