"""The encoders compute no shapes: those of a batch are constants, and features stay the same bit
for bit.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from export.artifacts.encoders import load_vision_model, use_fast_tower
from export.artifacts.onnx_graphs import export_vision_encoder, make_shapes_constant
from export.artifacts.vision_module import ImageInput, VisionEncoderModule
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import Precision, vision_encoder_file

# All have a kernel in ONNX Runtime's CUDA provider (its docs/OperatorKernels.md), and none is of
# shapes. Concat joins image features of Florence-2's projector, Gather reads PaliGemma's constant
# positions.
ON_CUDA = {
    "Add",
    "Cast",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Erf",
    "Gather",
    "LayerNormalization",
    "MatMul",
    "Mul",
}
ON_CUDA |= {"FastGelu", "MultiHeadAttention"}  # contributed by ONNX Runtime, in float16 graphs
ON_CUDA |= {"ReduceMean", "Reshape", "Slice", "Softmax", "Sub", "Tanh", "Transpose", "Unsqueeze"}


def traced(model_id: str, size_px: int, folder: Path) -> Path:
    """Return the traced encoder of an embedded model, for images of `size_px`."""
    model = load_vision_model(MODELS / model_id)
    use_fast_tower(model)
    image_input = ImageInput((size_px, size_px), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    export_vision_encoder(
        VisionEncoderModule(model, image_input), (size_px, size_px), folder / "traced.onnx"
    )
    return folder / "traced.onnx"


def features(file: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels})
    return np.asarray(found)


# The trace warns about the sides of padding.
@pytest.mark.filterwarnings("ignore:Constant folding - Only steps=1")
@pytest.mark.parametrize(
    ("model_id", "size_px"),
    [("florence-2-mini", 192), ("florence-2-mini", 224), ("paligemma-mini", 192)],
)  # 224: Florence-2 pads windows
def test_features_stay_the_same_in_batches_of_every_size(
    model_id: str, size_px: int, tmp_path: Path
) -> None:
    before = traced(model_id, size_px, tmp_path)
    after = Path(shutil.copy(before, tmp_path / "constant.onnx"))
    make_shapes_constant(after)
    onnx.checker.check_model(str(after), full_check=True)
    for num_images in (1, 2, 5):
        pixels = np.random.default_rng(0).integers(
            0, 256, (num_images, size_px, size_px, 3), dtype=np.uint8
        )
        assert np.array_equal(features(after, pixels), features(before, pixels))
    assert "Shape" in {node.op_type for node in onnx.load(before).graph.node}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_exported_encoder_has_only_operators_that_a_gpu_runs(
    artifacts: Path, precision: Precision
) -> None:
    nodes = onnx.load(artifacts / vision_encoder_file(precision)).graph.node
    assert {node.op_type for node in nodes} <= ON_CUDA


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_onnx_runtime_adds_no_shape_arithmetic(
    artifacts: Path, precision: Precision, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    file = str(artifacts / vision_encoder_file(precision))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    shapes = {"Shape", "Slice", "Range", "Tile", "Expand", "ConstantOfShape"}
    assert not operators.keys() & shapes
    # int8 patch embeddings of Florence-2 gather patches of the image and a row of zeros
    assert operators["Concat"] <= 1 + operators["Gather"]
