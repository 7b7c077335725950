"""The vision encoder as ONNX: exported in float32, then converted to int8 and float16.

    pixels uint8 (batch_size, H, W, 3) -> image_features float32 (batch_size, N, C)

int8 (CPU): weights of MatMul and Gemm are quantised per channel, their inputs dynamically.
Florence-2's graph is of one image (davit.py), because the runner encodes images one by one at int8.
float16 (CUDA): weights and activations; input and output keep their types; attention and GELU are
one operator each. All are exported with SDPA, which scales queries and keys before it multiplies
them: eager attention sums the products first, in Florence-2 over all tokens of an image (36,864 at
768 pixels), and leaves the range of float16.

A trace computes every shape that depends on the batch size from its input: a third of the nodes of
an encoder, which run on the CPU even where the others run on a GPU. `make_shapes_constant` replaces
them; the batch is the first axis throughout:

    shape of a Reshape      a constant with -1 for the batch; the other sides are those of the
                            inferred output
    any other tensor        the constant for a batch of one, which its users broadcast: position
                            embeddings; one that must not be broadcast differs from transformers in
                            the export's comparison

Shapes: B batch, S tokens, C hidden, A heads, D head size.
"""

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.fusion_fastgelu import FusionFastGelu
from onnxruntime.transformers.onnx_model import OnnxModel

from export.artifacts.vision_module import VisionEncoderModule
from wire.artifacts.manifest import vision_encoder_file

_OPSET = 18
_NAMES = ["pixels", "image_features"]  # input and output


def export_vision_encoder(
    module: VisionEncoderModule,
    size_wh: tuple[int, int],
    output: Path,
    is_for_one_image: bool = False,
) -> None:
    """Write `module` in float32, for images of exactly `size_wh`, in batches or one by one."""
    width, height = size_wh
    # a dynamic batch of one would be traced as a constant
    batch_size = 1 if is_for_one_image else 2
    pixels = torch.randint(0, 256, (batch_size, height, width, 3), dtype=torch.uint8)
    axes = {} if is_for_one_image else {name: {0: "batch_size"} for name in _NAMES}
    with torch.no_grad(), warnings.catch_warnings():
        # Sizes are fixed, so Python values that depend on them may be traced as constants.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # torch 2.13 calls exporting by tracing deprecated.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        torch.onnx.export(
            module.eval(),
            (pixels,),
            output,
            input_names=_NAMES[:1],
            output_names=_NAMES[1:],
            dynamic_axes=axes,
            opset_version=_OPSET,
            dynamo=False,
        )


def write_float16(folder: Path) -> None:
    """Convert the float32 graph in `folder`, beside it."""
    model = onnx.load(folder / vision_encoder_file("float32"))
    fuse(model)
    output = folder / vision_encoder_file("float16")
    onnx.save(convert_float_to_float16(model, keep_io_types=True), output)


def write_int8(source: Path, output: Path) -> None:
    """Quantise products with weights, but not attention: little gain, a larger loss of accuracy."""
    logging.disable(logging.WARNING)  # it recommends optimisations that ours replace
    try:
        quantize_dynamic(
            source,
            output,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True, "MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)


_MAX_SHAPE_BYTES = 1024  # limit of an initializer that may be a shape

_Shapes = Mapping[str, NDArray[np.int64]]  # by names of tensors


def make_shapes_constant(file: Path) -> None:
    """Replace the shape arithmetic of a graph whose only input has a dynamic first axis."""
    model = onnx.load(file)
    graph = model.graph
    arithmetic = shape_arithmetic(graph)
    others = [node for node in graph.node if arithmetic.isdisjoint(node.output)]
    read = dict.fromkeys(chain.from_iterable(node.input for node in others))
    used = [name for name in read if name in arithmetic]
    # a side of 1 may be broadcast
    two = inferred_shapes(model, 2)
    three = inferred_shapes(model, 3)
    one = {name: 2 * shape - three[name] for name, shape in two.items()}
    constants = dict(zip(used, _compute(model, arithmetic, used, one), strict=True))
    for node in others:
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = two[node.output[0]]
            constants[node.input[1]] = np.where(shape == three[node.output[0]], shape, -1)
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    nodes, tensors = _needed(others, _names(graph.output))
    initializers = [tensor for tensor in graph.initializer if tensor.name in tensors]
    # also the shapes that the trace has noted
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    for output in graph.output:  # the runner allocates it
        declared = output.type.tensor_type.shape.dim
        for axis in range(1, len(declared)):
            declared[axis].dim_value = int(two[output.name][axis])
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    onnx.save(model, file)


def shape_arithmetic(graph: GraphProto) -> set[str]:
    """Return the tensors that depend on the shape of the input and not on its values."""
    arithmetic = set[str]()
    computed = {graph_input.name for graph_input in graph.input}
    for node in graph.node:
        if node.op_type == "Shape":
            arithmetic.update(node.output)
        elif not computed.isdisjoint(node.input):
            computed.update(node.output)
        elif not arithmetic.isdisjoint(node.input):
            arithmetic.update(node.output)
    return arithmetic


def inferred_shapes(model: ModelProto, batch_size: int) -> _Shapes:
    """Return the tensors' shapes for that batch size, where they do not depend on values."""
    graph = model.graph
    (graph_input,) = graph.input
    input_type = graph_input.type.tensor_type
    input_shape = [batch_size, *(dim.dim_value for dim in input_type.shape.dim[1:])]
    inputs = [helper.make_tensor_value_info(graph_input.name, input_type.elem_type, input_shape)]
    small = []
    for tensor in graph.initializer:
        # Without the weights: a serialised model has at most 2 GB.
        if tensor.ByteSize() <= _MAX_SHAPE_BYTES:
            small.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            inputs.append(info)
    outline = _with_graph(model, graph.node, inputs, _names(graph.output), small)
    inferred = onnx.shape_inference.infer_shapes(outline, strict_mode=True, data_prop=True).graph
    shapes = {}
    for info in (*inferred.input, *inferred.value_info, *inferred.output):
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if 0 not in shape:  # 0: unknown
            shapes[info.name] = np.array(shape, np.int64)
    return shapes


def _compute(
    model: ModelProto, arithmetic: set[str], names: Sequence[str], shapes: _Shapes
) -> Sequence[NDArray[Any]]:
    """Return the values of tensors of the shape arithmetic, from the `shapes` of the others."""
    nodes = []
    initializers = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type != "Shape" or node.input[0] in arithmetic:
            nodes.append(node)
        elif node.input[0] in shapes:
            initializers.append(numpy_helper.from_array(shapes[node.input[0]], node.output[0]))
    needed, tensors = _needed(nodes, names)
    constants = [tensor for tensor in initializers if tensor.name in tensors]
    part = _with_graph(model, needed, [], names, constants)
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values: Sequence[NDArray[Any]] = session.run(names, {})
    return values


def _needed(nodes: Sequence[NodeProto], names: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """Return the `nodes` that compute the tensors `names`, in order, and all tensors they use."""
    tensors = set(names)
    needed = list[NodeProto]()
    for node in reversed(nodes):
        if not tensors.isdisjoint(node.output):
            needed.append(node)
            tensors.update(node.input)
    return needed[::-1], tensors


def _names(tensors: Iterable[ValueInfoProto]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _with_graph(
    model: ModelProto,
    nodes: Iterable[NodeProto],
    inputs: Iterable[ValueInfoProto],
    outputs: Iterable[str],
    initializers: Iterable[onnx.TensorProto],
) -> ModelProto:
    infos = map(helper.make_empty_tensor_value_info, outputs)
    graph = helper.make_graph(
        list(nodes), model.graph.name, list(inputs), list(infos), list(initializers)
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


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
