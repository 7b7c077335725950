from math import prod
from pathlib import Path

import pytest
from safetensors import safe_open

from laboratory.bench.limits import steps_bytes
from laboratory.bench.operations import Operations, count_operations
from tasks.catalog import CatalogEntry
from tests.support.catalog import FLORENCE, PALIGEMMA, ROOT


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight in a checkpoint's file."""
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118


def test_operations_of_siglip_are_those_of_its_matrices_and_attention() -> None:
    folder = ROOT / PALIGEMMA.source
    num_tokens = 144  # (192 / 16)²
    matrices = {
        name: shape
        for name, shape in shapes(folder).items()
        if "vision_tower" in name or "projector" in name
    }
    in_weights = sum(
        prod(s) for name, s in matrices.items() if len(s) > 1 and "position_embedding" not in name
    )
    num_layers = 4
    hidden_size = 192
    # queries by keys, probabilities by values
    in_attention = num_layers * 2 * 2 * num_tokens**2 * hidden_size
    assert count_operations(folder).encoder_operations == 2 * num_tokens * in_weights + in_attention


def test_a_step_of_gemma_reads_its_layers_and_the_tied_embedding() -> None:
    folder = ROOT / PALIGEMMA.source
    language_model = {
        name: shape for name, shape in shapes(folder).items() if "language_model" in name
    }
    read = [
        shape
        for name, shape in language_model.items()
        if ".layers." in name or "embed_tokens" in name
    ]
    assert count_operations(folder).step_weights == sum(map(prod, read))


def test_a_step_of_bart_reads_neither_its_encoder_nor_the_cross_attention_projections() -> None:
    folder = ROOT / FLORENCE.source
    decoder = {name: shape for name, shape in shapes(folder).items() if ".decoder.layers." in name}
    read = [
        s
        for name, s in decoder.items()
        if "encoder_attn.k_proj" not in name and "encoder_attn.v_proj" not in name
    ]
    (embedding,) = (
        shape for name, shape in shapes(folder).items() if name.endswith("shared.weight")
    )
    assert count_operations(folder).step_weights == sum(map(prod, read)) + prod(embedding)


def test_keys_and_values_are_float32_at_any_precision_of_weights() -> None:
    operations = Operations(
        encoder_operations=1, step_weights=1000, numbers_per_position=10, num_image_tokens=88
    )
    assert steps_bytes(operations) == [4 * 1000 + 4 * 10 * 100, 1000 + 4 * 10 * 100]


@pytest.mark.parametrize(("entry", "num_tokens"), [(FLORENCE, 145), (PALIGEMMA, 144)])
def test_image_tokens_are_read_from_the_processor(entry: CatalogEntry, num_tokens: int) -> None:
    assert count_operations(ROOT / entry.source).num_image_tokens == num_tokens
