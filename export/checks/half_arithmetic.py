"""The float16 vision encoder in true half arithmetic, on any CPU: onnx's reference evaluator with
faster operators.

It proves that no value of the float16 graph leaves float16's range (65,504) in a way that reaches
the features: every operator of the stored graph reads and writes float16. Inside an operator, sums
and normalisations are float32, as in the kernels of CUDA (cuBLAS, cuDNN, ONNX Runtime's
LayerNormalization and Softmax). It proves nothing about kernels that also sum in float16, which
ONNX Runtime uses only on request.

Other ways are wrong on a CPU: ONNX Runtime computes such a graph in float32, torch's SDPA keeps the
products of queries and keys in float32, and onnx 1.23's own LayerNormalization sums squares in
float16, against its `stash_type`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op
from torch import Tensor
from torch.nn import functional


class HalfEncoder:
    """A float16 graph of a vision encoder."""

    def __init__(self, file: Path) -> None:
        self._evaluator = ReferenceEvaluator(str(file), new_ops=_OPERATORS)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features (B, N, C) of RGB `pixels` (B, H, W, 3); overflows give NaN or inf."""
        # The evaluator's own `run` keeps every intermediate result: gigabytes at real widths.
        nodes = self._evaluator.rt_nodes_
        last_use = dict[str, int]()
        for index, node in enumerate(nodes):
            last_use |= dict.fromkeys(node.input, index)
        (image_input,) = self._evaluator.input_names
        (output,) = self._evaluator.output_names
        values: dict[str, Any] = {"": None, **self._evaluator.rt_inits_, image_input: pixels}
        with np.errstate(all="ignore"):
            for index, node in enumerate(nodes):
                results = node.run(*(values[name] for name in node.input))
                values.update(zip(node.output, results, strict=True))
                for name in {*node.input, *node.output} - {""}:
                    if last_use.get(name, -1) <= index and name != output:
                        values.pop(name)
        features: NDArray[np.float32] = values[output]
        return features


def conv(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    group: int,
    pads: Sequence[int] | None = None,
    **_shape: Any,
) -> Tensor:
    top, left, bottom, right = pads or (0, 0, 0, 0)
    padded = functional.pad(pixels.float(), (left, right, top, bottom))
    own_bias = None if bias is None else bias.float()
    return functional.conv2d(
        padded, weight.float(), own_bias, tuple(strides), 0, tuple(dilations), group
    ).half()


def layer_normalization(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int,
    epsilon: float,
    **_precision: Any,
) -> Tensor:
    return functional.layer_norm(rows, rows.shape[axis:], weight, bias, epsilon)


# Elementwise functions and norms of torch compute float16 in float32 and round the result. Its
# products of float16 matrices do too, but on a CPU 300 times as slowly as float32: these are
# computed in float32 and rounded here.
_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Conv": conv,
    "Div": torch.div,
    "Erf": torch.erf,
    "LayerNormalization": layer_normalization,
    "MatMul": lambda rows, columns: (rows.float() @ columns.float()).half(),
    "Mul": torch.mul,
    "Softmax": lambda scores, *, axis: scores.softmax(axis),
    "Sub": torch.sub,
    "Tanh": torch.tanh,
}


def fast_gelu(_operator: Any, rows: Any) -> tuple[Any, ...]:
    """Compute ONNX Runtime's GELU with tanh."""
    return (functional.gelu(torch.from_numpy(rows), approximate="tanh").numpy(),)


def multi_head_attention(
    _operator: Any, query: Any, key: Any, value: Any, num_heads: int = 0, scale: float = 0.0
) -> tuple[Any, ...]:
    """Compute ONNX Runtime's attention, unfused: scores are scaled sums, rounded to float16."""
    shape = (*query.shape[:2], num_heads, -1)
    q, k, v = (torch.from_numpy(part).view(shape).transpose(1, 2) for part in (query, key, value))
    scores = (q.float() @ k.float().mT * scale).half()
    attended = (scores.softmax(-1).float() @ v.float()).half()
    return (attended.transpose(1, 2).reshape(query.shape).numpy(),)


def _float16_operator(op_type: str, function: Callable[..., Tensor]) -> type[Any]:
    """Return onnx's operator; on float16 inputs it calls `function`."""
    standard: Any = load_op("", op_type)

    def run(self: Any, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        if inputs[0].dtype != np.float16:
            results: tuple[Any, ...] = standard._run(self, *inputs, **attributes)
            return results
        tensors = (
            None if value is None else torch.from_numpy(np.require(value, requirements="W"))
            for value in inputs
        )
        # Not `attributes`: onnx hands none to an operator with one input.
        options = {name: getattr(self, name) for name in self.attributes_names_}
        return (function(*tensors, **options).numpy(),)

    return type(op_type, (standard,), {"op_domain": "", "_run": run})


_CONTRIBUTED = {"FastGelu": fast_gelu, "MultiHeadAttention": multi_head_attention}
_OPERATORS: list[type[OpRun]] = [
    *(
        type(name, (OpRun,), {"op_domain": "com.microsoft", "_run": run})
        for name, run in _CONTRIBUTED.items()
    ),
    *(_float16_operator(op_type, function) for op_type, function in _FUNCTIONS.items()),
]
