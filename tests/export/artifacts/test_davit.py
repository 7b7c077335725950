from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.artifacts.davit import TokenRowsDavit
from export.artifacts.encoders import load_vision_model, make_encoders, use_fast_tower
from export.artifacts.vision_module import ImageInput
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import Precision, vision_encoder_file

CHECKPOINT = MODELS / "florence-2-mini"
ROUNDING = 1e-5  # relative to the largest feature, after sums in another order


def towers() -> tuple[torch.nn.Module, TokenRowsDavit]:
    original = load_vision_model(CHECKPOINT).model.vision_tower
    fast = use_fast_tower(load_vision_model(CHECKPOINT))
    assert fast is not None
    return original, fast


def random_images(num_images: int, size_px: int) -> Tensor:
    return torch.randn(num_images, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize(("num_images", "is_for_one_image"), [(2, False), (1, False), (1, True)])
@pytest.mark.parametrize(
    "size_px", [192, 224]
)  # stages of 6 to 56 tokens a side: windows that are whole, and padded ones
def test_features_equal_those_of_transformers(
    num_images: int, is_for_one_image: bool, size_px: int
) -> None:
    original, fast = towers()
    fast.is_for_one_image = is_for_one_image
    images = random_images(num_images, size_px)
    expected = original(images).last_hidden_state
    tolerance = ROUNDING * float(expected.abs().max())
    torch.testing.assert_close(fast(images).last_hidden_state, expected, atol=tolerance, rtol=0)


def test_paligemmas_tower_is_kept() -> None:
    model = load_vision_model(MODELS / "paligemma-mini")
    tower = model.model.vision_tower
    assert use_fast_tower(model) is None
    assert model.model.vision_tower is tower


def optimised_operators(file: Path, folder: Path) -> Counter[str]:
    """Return the number of operators of each type after ONNX Runtime's own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the written graph is one for this processor
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize(
    ("precision", "num_transposes", "num_embeddings"), [("int8", 4, 1), ("float32", 11, 4)]
)
def test_few_transposes_and_float_convolutions_are_left(
    precision: Precision, num_transposes: int, num_embeddings: int, tmp_path: Path
) -> None:
    """Transformers' form has 20 transposes in a pair of a spatial and a channel block, which has 4
    depthwise convolutions.
    """
    make_encoders(
        CHECKPOINT,
        ImageInput((192, 192), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3),
        [precision],
        tmp_path,
    )
    operators = optimised_operators(tmp_path / vision_encoder_file(precision), tmp_path)
    num_blocks = sum(load_vision_model(CHECKPOINT).config.vision_config.depths)
    assert 0 < operators["Transpose"] <= num_transposes * num_blocks
    assert operators["Conv"] == 4 * num_blocks + num_embeddings
    assert operators["Split"] == 0
    assert operators["MultiHeadAttention"] == (num_blocks if precision == "int8" else 0)
    assert {path.name for path in tmp_path.glob("vision*")} == {
        vision_encoder_file("float32"),
        vision_encoder_file(precision),
    }
