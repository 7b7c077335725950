"""The vision encoder as ONNX: exported by optimum in float32, then converted to int8 and float16.

    pixels uint8 (batch_size, H, W, 3) -> image_features float32 (batch_size, N, C)

int8 (CPU): weights of MatMul and Gemm are quantised per channel, their inputs dynamically.
Florence-2's graph is of one image (davit.py), because the runner encodes images one by one at int8.
float16 (CUDA): weights and activations; input and output keep their types; attention and GELU are
one operator each. All are exported with SDPA, which scales queries and keys before it multiplies
them: eager attention sums the products first, in Florence-2 over all tokens of an image (36,864 at
768 pixels), and leaves the range of float16.

A trace with a dynamic batch size computes each shape from its input: a third of the nodes of an
encoder, which run on the CPU even where the others run on a GPU. One image is traced instead, ONNX
Runtime computes the shapes, which are constants then, and `free_batch` makes the first side of each
free. What follows the batch otherwise, position embeddings, has a first side of one and broadcasts.

Shapes: B batch, S tokens, C hidden, A heads, D head size.
"""

import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantizationMode, QuantType
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.fusion_fastgelu import FusionFastGelu
from onnxruntime.transformers.onnx_model import OnnxModel
from optimum.exporters.onnx import OnnxConfig, export
from optimum.onnxruntime import ORTQuantizer, QuantizationConfig
from optimum.utils import NormalizedConfig
from torch import Tensor
from transformers import PreTrainedConfig

from export.artifacts.vision_module import VisionEncoderModule
from wire.artifacts.manifest import vision_encoder_file

_OPSET = 18


class VisionEncoderConfig(OnnxConfig):  # type: ignore[misc]  # optimum has no types
    """Optimum's description of a `VisionEncoderModule`; both families have the same."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    inputs: Mapping[str, Mapping[int, str]] = {"pixels": {0: "batch_size"}}
    outputs: Mapping[str, Mapping[int, str]] = {"image_features": {0: "batch_size"}}

    def __init__(self, config: Any, size_wh: tuple[int, int]) -> None:
        super().__init__(config)
        self._size_wh = size_wh

    def generate_dummy_inputs(self, **_options: Any) -> dict[str, Tensor]:
        """Return one image of random pixels."""
        width, height = self._size_wh
        return {"pixels": torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)}


def export_vision_encoder(
    module: VisionEncoderModule,
    size_wh: tuple[int, int],
    output: Path,
    is_for_one_image: bool = False,
) -> None:
    """Write `module` in float32, for images of exactly `size_wh`, in batches or one by one."""
    config = VisionEncoderConfig(module.config, size_wh)
    with warnings.catch_warnings():
        # Sizes are fixed, so Python values that depend on them may be traced as constants.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # torch 2.13 calls exporting by tracing deprecated.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        export(
            module,
            config,
            output,
            opset=_OPSET,
            no_dynamic_axes=True,
            disable_dynamic_axes_fix=True,
        )
    compute_constants(output)
    if not is_for_one_image:
        free_batch(output)


def compute_constants(file: Path) -> None:
    """Replace what does not depend on the input by its value; fuse nothing."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 3  # it warns of constants that are not used any more
    # MatMul and Add stay apart: dynamic quantisation has no Gemm of three dimensions.
    onnxruntime.InferenceSession(
        file.read_bytes(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],
    )


def free_batch(file: Path) -> None:
    """Let a graph of one image take batches: their size is the first axis of every tensor."""
    model = onnx.load(file)
    graph = model.graph
    old_shapes = set()
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {}
    for info in (*inferred.value_info, *inferred.output):
        shapes[info.name] = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    for node in graph.node:
        if node.op_type == "Reshape":
            old_shapes.add(node.input[1])
            shape = np.array([-1, *shapes[node.output[0]][1:]], np.int64)
            node.input[1] = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    for initializer in list(graph.initializer):
        if initializer.name in old_shapes:
            graph.initializer.remove(initializer)
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch_size"
    del graph.value_info[:]  # shapes of one image
    onnx.save(model, file)


def write_float16(folder: Path) -> None:
    """Convert the float32 graph in `folder`, beside it."""
    model = onnx.load(folder / vision_encoder_file("float32"))
    fuse(model)
    output = folder / vision_encoder_file("float16")
    onnx.save(convert_float_to_float16(model, keep_io_types=True), output)


def write_int8(source: Path, output: Path) -> None:
    """Quantise products with weights, but not attention: little gain, a larger loss of accuracy."""
    graph = onnx.load(source).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    config = QuantizationConfig(
        is_static=False,
        format=QuantFormat.QOperator,
        mode=QuantizationMode.IntegerOps,
        weights_dtype=QuantType.QInt8,
        per_channel=True,
        operators_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[node.name for node in products if node.input[1] not in weights],
    )
    quantizer = ORTQuantizer(source, PreTrainedConfig())
    logging.disable(logging.WARNING)  # it recommends optimisations that ours replace
    try:
        with tempfile.TemporaryDirectory(dir=output.parent) as folder:
            quantizer.quantize(config, folder, file_suffix="")
            Path(folder, source.name).replace(output)
    finally:
        logging.disable(logging.NOTSET)


_DOMAIN = "com.microsoft"
_HEADS_FIRST = (0, 2, 1, 3)  # (B, S, A, D) -> (B, A, S, D)
_TRANSPOSED = (0, 2, 3, 1)  # (B, S, A, D) -> (B, A, D, S)


@dataclass(frozen=True, slots=True)
class _Heads:
    """A tensor (B, S, C), scaled and split into heads."""

    source: str
    num_heads: int
    scale: float


def fuse(model: ModelProto) -> None:
    graph: Any = OnnxModel(model)
    FusionFastGelu(graph).apply()
    for softmax in graph.get_nodes_by_op_type("Softmax"):
        fuse_attention(graph, softmax)
    graph.prune_graph()
    graph.topological_sort()
    if all(opset.domain != _DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def fuse_attention(graph: Any, softmax: NodeProto) -> None:
    """Replace an attention over heads; leave another, such as that over channels, as it is."""
    products = graph.get_children(softmax)
    scores = graph.get_parent(softmax, 0)
    if scores is None or {node.op_type for node in (scores, *products)} != {"MatMul"}:
        return
    query = _split_heads(graph, scores.input[0], _HEADS_FIRST)
    key = _split_heads(graph, scores.input[1], _TRANSPOSED)
    value = _split_heads(graph, products[0].input[1], _HEADS_FIRST)
    merging = graph.match_child_path(products[0], ["Reshape", "Transpose", "Reshape"])
    merging = merging or graph.match_child_path(products[0], ["Transpose", "Reshape"])
    if query is None or key is None or value is None or value.scale != 1.0 or merging is None:
        return
    *_, transpose, merged = merging
    if tuple(graph.get_node_attribute(transpose, "perm")) != _HEADS_FIRST:
        return
    graph.remove_node(merged)
    graph.add_node(
        helper.make_node(
            "MultiHeadAttention",
            [query.source, key.source, value.source],
            list(merged.output),
            name=f"{softmax.name}/fused",
            domain=_DOMAIN,
            num_heads=query.num_heads,
            scale=query.scale * key.scale,
        )
    )


def _split_heads(graph: Any, name: str, permutation: tuple[int, ...]) -> _Heads | None:
    """Return the source of heads with that permutation of (B, S, A, D), or None."""
    axes = (0, 1, 2, 3)
    num_heads = 0
    scale = 1.0
    while (node := graph.output_name_to_node().get(name)) is not None:
        if node.op_type == "Mul":
            place, factor = graph.get_constant_input(node)
            if factor is None or factor.size != 1:
                return None
            scale *= float(factor.item())
            name = node.input[1 - place]
            continue
        if node.op_type == "Transpose" and not num_heads:
            permuted = graph.get_node_attribute(node, "perm")
            axes = tuple(permuted[axis] for axis in axes)
        elif node.op_type == "Reshape" and not num_heads:
            shape = graph.get_constant_value(node.input[1])
            if shape is None or len(shape) != 4:
                return None
            num_heads = int(shape[2])
        else:
            break
        name = node.input[0]
    return _Heads(name, num_heads, scale) if num_heads and axes == permutation else None
