"""Vision encoders in the form that ONNX Runtime runs fastest give the features of transformers."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.artifacts.encoders import load_vision_model, make_encoders, use_fast_tower
from export.artifacts.onnx_graphs import export_vision_encoder, fuse
from export.artifacts.vision_module import ImageInput, VisionEncoderModule
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import Precision, vision_encoder_file

CHECKPOINT = MODELS / "florence-2-mini"
# All have a kernel in ONNX Runtime's CUDA provider (its docs/OperatorKernels.md), and none is of
# shapes. Concat joins image features of Florence-2's projector, Gather reads PaliGemma's constant
# positions.
ON_CUDA = {"Add", "Cast", "Concat", "Constant", "Conv", "Div", "Erf", "Gather", "MatMul", "Mul"}
ON_CUDA |= {"FastGelu", "MultiHeadAttention"}  # contributed by ONNX Runtime, in float16 graphs
ON_CUDA |= {"LayerNormalization", "ReduceMean"}
ON_CUDA |= {"Reshape", "Slice", "Softmax", "Sub", "Tanh", "Transpose", "Unsqueeze"}
ROUNDING = 1e-4  # features are up to about 16; sums have another order
# SigLIP has four layers; DaViT four pairs of blocks, of which half attend over channels, by formula
FUSED = {
    "paligemma-mini": {"FastGelu": 4, "MultiHeadAttention": 4, "Softmax": 0, "Tanh": 0},
    "florence-2-mini": {"FastGelu": 0, "MultiHeadAttention": 4, "Softmax": 4, "Tanh": 0},
}


def image_input(size_px: int) -> ImageInput:
    return ImageInput((size_px, size_px), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def pixels(num_images: int, size_px: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, size_px, size_px, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def features(file: Path, num_images: int, size_px: int = 192) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"pixels": pixels(num_images, size_px).numpy()})
    return np.asarray(rows)


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


def optimised_operators(
    file: Path, folder: Path, level: onnxruntime.GraphOptimizationLevel
) -> Counter[str]:
    """Return the number of operators of each type after ONNX Runtime's own optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the written graph is one for this processor
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return operators(folder / "optimised.onnx")


@torch.inference_mode()
@pytest.mark.parametrize(("num_images", "is_for_one_image"), [(2, False), (1, True)])
# stages of 6 to 56 tokens a side: windows that are whole, and padded ones
@pytest.mark.parametrize("size_px", [192, 224])
def test_the_fast_tower_has_transformers_features(
    num_images: int, is_for_one_image: bool, size_px: int
) -> None:
    original = load_vision_model(CHECKPOINT).model.vision_tower
    fast = use_fast_tower(load_vision_model(CHECKPOINT))
    assert fast is not None
    fast.is_for_one_image = is_for_one_image
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, size_px, size_px, generator=generator)
    expected = original(images).last_hidden_state
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(fast(images).last_hidden_state, expected, atol=tolerance, rtol=0)


def test_paligemmas_tower_stays() -> None:
    model = load_vision_model(MODELS / "paligemma-mini")
    tower = model.model.vision_tower
    assert use_fast_tower(model) is None
    assert model.model.vision_tower is tower


@pytest.mark.parametrize(
    ("precision", "num_transposes", "num_embeddings"), [("int8", 4, 1), ("float32", 11, 4)]
)
def test_few_transposes_and_float_convolutions_are_left(
    precision: Precision, num_transposes: int, num_embeddings: int, tmp_path: Path
) -> None:
    """Transformers' form has 20 transposes in a pair of a spatial and a channel block, which has 4
    depthwise convolutions.
    """
    make_encoders(CHECKPOINT, image_input(192), [precision], tmp_path)
    file = vision_encoder_file(precision)
    assert {path.name for path in tmp_path.iterdir()} == {vision_encoder_file("float32"), file}
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    counts = optimised_operators(tmp_path / file, tmp_path, level)
    num_blocks = sum(load_vision_model(CHECKPOINT).config.vision_config.depths)
    assert 0 < counts["Transpose"] <= num_transposes * num_blocks
    assert counts["Conv"] == 4 * num_blocks + num_embeddings
    assert counts["Split"] == 0
    assert counts["MultiHeadAttention"] == (num_blocks if precision == "int8" else 0)


# The trace warns about the sides of padding.
@pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1")
@pytest.mark.parametrize(
    ("model_id", "size_px"), [("florence-2-mini", 224), ("paligemma-mini", 192)]
)  # 224: Florence-2 pads windows
def test_a_trace_of_one_image_encodes_batches(model_id: str, size_px: int, tmp_path: Path) -> None:
    model = load_vision_model(MODELS / model_id)
    use_fast_tower(model)
    file = tmp_path / "vision_encoder.onnx"
    module = VisionEncoderModule(model, image_input(size_px))
    export_vision_encoder(module, (size_px, size_px), file)
    onnx.checker.check_model(str(file), full_check=True)
    for num_images in (1, 2, 5):
        expected = module(pixels(num_images, size_px)).detach().numpy()
        assert features(file, num_images, size_px) == pytest.approx(expected, abs=ROUNDING)
    (output,) = onnx.load(file).graph.output
    sides = [dimension.dim_value for dimension in output.type.tensor_type.shape.dim[1:]]
    assert tuple(sides) == expected.shape[1:]


def test_a_gpu_runs_every_operator(artifacts: Path) -> None:
    for precision in ("float32", "float16"):
        assert operators(artifacts / vision_encoder_file(precision)).keys() <= ON_CUDA


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx_runtime_adds_no_shape_arithmetic(
    artifacts: Path, precision: Precision, tmp_path: Path
) -> None:
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    counts = optimised_operators(artifacts / vision_encoder_file(precision), tmp_path, level)
    shapes = {"Shape", "Slice", "Range", "Tile", "Expand", "ConstantOfShape"}
    assert not counts.keys() & shapes
    # int8 patch embeddings of Florence-2 gather patches of the image and a row of zeros
    assert counts["Concat"] <= 1 + counts["Gather"]


def test_fused_operators_keep_the_features(artifacts: Path, model_id: str, tmp_path: Path) -> None:
    file = artifacts / vision_encoder_file("float32")
    model = onnx.load(file)
    fuse(model)
    fused = tmp_path / "fused.onnx"
    onnx.save(model, fused)
    for graph in (fused, artifacts / vision_encoder_file("float16")):
        counts = operators(graph)
        assert {name: counts[name] for name in FUSED[model_id]} == FUSED[model_id]
    assert features(fused, 3) == pytest.approx(features(file, 3), abs=ROUNDING)
