"""Makes the shapes in a traced graph constant, so that it computes none while it runs.

A trace computes every shape that depends on the batch size from its input: a third of the nodes of
an encoder, which run on the CPU even where the others run on a GPU. The batch is the first axis
throughout:

    shape of a Reshape      a constant with -1 for the batch; the other sides are those of the
                            inferred output
    any other tensor        the constant for a batch of one, which its users broadcast: position
                            embeddings

Knows no model. A tensor that must not be broadcast would fail, or differ from transformers in the
export's comparison.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

_MAX_SHAPE_BYTES = 1024  # limit of an initializer that may be a shape

_Shapes = Mapping[str, Sequence[int]]  # tensor shapes by name


def make_shapes_constant(file: Path) -> None:
    """Replace the shape arithmetic of the graph in `file`, whose only input has a dynamic first
    axis.
    """
    model = onnx.load(file)
    graph = model.graph
    arithmetic = shape_arithmetic(model.graph)
    others = [node for node in graph.node if arithmetic.isdisjoint(node.output)]
    read = dict.fromkeys(chain.from_iterable(node.input for node in others))
    used = [name for name in read if name in arithmetic]
    # a side of 1 may be broadcast
    two, three = (inferred_shapes(model, batch_size) for batch_size in (2, 3))
    one = {}
    for name, shape in two.items():
        one[name] = [2 * a - b for a, b in zip(shape, three[name], strict=True)]
    constants = dict(zip(used, _compute(model, arithmetic, used, one), strict=True))
    for node in others:
        if node.op_type == "Reshape" and node.input[1] in constants:
            sides = zip(two[node.output[0]], three[node.output[0]], strict=True)
            constants[node.input[1]] = np.array(
                [side if side == other else -1 for side, other in sides]
            )
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    nodes, tensors = _needed(others, [output.name for output in graph.output])
    initializers = [tensor for tensor in graph.initializer if tensor.name in tensors]
    # also the shapes that the trace has noted
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    onnx.save(model, file)


def shape_arithmetic(graph: GraphProto) -> set[str]:
    """Return the tensors that depend on the shape of the input and not on its values."""
    arithmetic = set[str]()
    computed = {given.name for given in graph.input}
    for node in graph.node:
        if node.op_type == "Shape":
            arithmetic.update(node.output)
        elif not computed.isdisjoint(node.input):
            computed.update(node.output)
        elif not arithmetic.isdisjoint(node.input):
            arithmetic.update(node.output)
    return arithmetic


def inferred_shapes(model: ModelProto, batch_size: int) -> _Shapes:
    """Return the shapes of the tensors for batches of `batch_size`, where they do not depend on
    values.
    """
    graph = model.graph
    (given,) = graph.input
    sides = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    inputs = [
        helper.make_tensor_value_info(
            given.name, given.type.tensor_type.elem_type, [batch_size, *sides[1:]]
        )
    ]
    # Without the weights: a serialised model has at most 2 GB.
    small = [tensor for tensor in graph.initializer if tensor.ByteSize() <= _MAX_SHAPE_BYTES]
    large = [tensor for tensor in graph.initializer if tensor.ByteSize() > _MAX_SHAPE_BYTES]
    inputs += [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in large
    ]
    outputs = [helper.make_empty_tensor_value_info(output.name) for output in graph.output]
    outline = _with_graph(model, helper.make_graph(graph.node, graph.name, inputs, outputs, small))
    inferred = onnx.shape_inference.infer_shapes(outline, strict_mode=True, data_prop=True).graph
    infos = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {}
    for info in infos:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if 0 not in shape:  # 0: unknown
            shapes[info.name] = shape
    return shapes


def _compute(
    model: ModelProto, arithmetic: set[str], names: Sequence[str], shapes: _Shapes
) -> Sequence[NDArray[Any]]:
    """Return the values of tensors of the shape arithmetic, from the `shapes` of the others."""
    graph = model.graph
    sources = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Shape" and node.input[0] not in arithmetic
    }
    nodes, tensors = _needed([node for node in graph.node if node.output[0] not in sources], names)
    known = {name: np.array(shapes[source]) for name, source in sources.items() if name in tensors}
    initializers = [numpy_helper.from_array(value, name) for name, value in known.items()]
    initializers += [tensor for tensor in graph.initializer if tensor.name in tensors]
    outputs = [helper.make_empty_tensor_value_info(name) for name in names]
    part = _with_graph(model, helper.make_graph(nodes, graph.name, [], outputs, initializers))
    session = onnxruntime.InferenceSession(
        part.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values: Sequence[NDArray[Any]] = session.run(names, {})
    return values


def _needed(nodes: Sequence[NodeProto], names: Iterable[str]) -> tuple[list[NodeProto], set[str]]:
    """Return those of `nodes` that compute the tensors `names`, in order, and all tensors that they
    use.
    """
    tensors = set(names)
    needed = list[NodeProto]()
    for node in reversed(nodes):
        if not tensors.isdisjoint(node.output):
            needed.append(node)
            tensors.update(node.input)
    return needed[::-1], tensors


def _with_graph(model: ModelProto, graph: GraphProto) -> ModelProto:
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
