"""Operators of ONNX Runtime in place of the subgraphs that a trace has for them: few launches on a
GPU, where each of an encoder's is about as long as the work of a small image.

    FastGelu               GELU with tanh; ONNX Runtime's tools find it
    MultiHeadAttention     softmax(scale * Q K^T) V over heads that are split off and merged again

ONNX Runtime itself finds neither in these graphs. On a CPU the subgraphs stay: its answers are
those of before. Shapes: B batch, S tokens, C hidden, A heads, D head size.
"""

from dataclasses import dataclass
from typing import Any

from onnx import ModelProto, NodeProto, helper
from onnxruntime.transformers.fusion_fastgelu import FusionFastGelu
from onnxruntime.transformers.onnx_model import OnnxModel

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
    """Replace the subgraphs in `model`, in place."""
    graph: Any = OnnxModel(model)
    FusionFastGelu(graph).apply()
    for softmax in graph.get_nodes_by_op_type("Softmax"):
        fuse_attention(graph, softmax)
    graph.prune_graph()
    graph.topological_sort()
    if all(each.domain != _DOMAIN for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def fuse_attention(graph: Any, softmax: NodeProto) -> None:
    """Replace an attention over heads; leave another, such as that over channels, as it is."""
    products = graph.get_children(softmax)
    scores = graph.get_parent(softmax, 0)
    if scores is None or {each.op_type for each in (scores, *products)} != {"MatMul"}:
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
    found = (0, 1, 2, 3)
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
            own = graph.get_node_attribute(node, "perm")
            found = tuple(own[axis] for axis in found)
        elif node.op_type == "Reshape" and not num_heads:
            shape = graph.get_constant_value(node.input[1])
            if shape is None or len(shape) != 4:
                return None
            num_heads = int(shape[2])
        else:
            break
        name = node.input[0]
    return _Heads(name, num_heads, scale) if num_heads and found == permutation else None
