"""Graphs without shape arithmetic, and with fused operators, give the features of the others."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from export.artifacts.encoders import load_vision_model, use_fast_tower
from export.artifacts.onnx_graphs import export_vision_encoder, fuse, make_shapes_constant
from export.artifacts.vision_module import ImageInput, VisionEncoderModule
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import Precision, vision_encoder_file

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


def features(file: Path, num_images: int, size_px: int = 192) -> NDArray[np.float32]:
    shape = (num_images, size_px, size_px, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"pixels": pixels})
    return np.asarray(rows)


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


# The trace warns about the sides of padding.
@pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1")
@pytest.mark.parametrize(
    ("model_id", "size_px"),
    [("florence-2-mini", 192), ("florence-2-mini", 224), ("paligemma-mini", 192)],
)  # 224: Florence-2 pads windows
def test_constant_shapes_keep_the_features(model_id: str, size_px: int, tmp_path: Path) -> None:
    model = load_vision_model(MODELS / model_id)
    use_fast_tower(model)
    image_input = ImageInput((size_px, size_px), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    before = tmp_path / "traced.onnx"
    export_vision_encoder(VisionEncoderModule(model, image_input), image_input.size_wh, before)
    assert operators(before)["Shape"]
    after = Path(shutil.copy(before, tmp_path / "constant.onnx"))
    make_shapes_constant(after)
    onnx.checker.check_model(str(after), full_check=True)
    for num_images in (1, 2, 5):
        expected = features(before, num_images, size_px)
        assert np.array_equal(features(after, num_images, size_px), expected)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gpu_runs_every_operator(artifacts: Path, precision: Precision) -> None:
    assert operators(artifacts / vision_encoder_file(precision)).keys() <= ON_CUDA


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx_runtime_adds_no_shape_arithmetic(
    artifacts: Path, precision: Precision, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    file = str(artifacts / vision_encoder_file(precision))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    counts = operators(tmp_path / "optimised.onnx")
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
