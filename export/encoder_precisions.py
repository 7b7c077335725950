"""The vision encoder's graph at other precisions, made of the float32 one.

int8: weights of MatMul and Gemm rounded per channel, what they multiply at each run ("dynamic"), for the CPU.
float16: weights and what flows between the operators, for CUDA. Input and output stay as they are.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

from runners.artifacts.manifest import Precision, vision_encoder_file

_OPERATORS = ["MatMul", "Gemm"]


def write_at_precision(folder: Path, precision: Precision, config: Any) -> None:
    """Write the graph at `precision` beside the float32 graph in `folder`; `config` is the checkpoint's."""
    source, output = folder / vision_encoder_file("float32"), folder / vision_encoder_file(precision)
    match precision:
        case "float32":
            return
        case "int8":
            _write_int8(source, output, config)
        case "float16":
            onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), output)
        case "bfloat16":
            raise ValueError("no encoder runs in bfloat16")


def _write_int8(source: Path, output: Path, config: Any) -> None:
    """Quantise by optimum; it writes the graph with configurations of its own, which are not kept."""
    # Attention multiplies what the graph computed: without weights there, rounding would gain little and lose more.
    computed = _products_of_computed(onnx.load(source, load_external_data=False))
    options = AutoQuantizationConfig.avx512_vnni(
        is_static=False, per_channel=True, operators_to_quantize=_OPERATORS, nodes_to_exclude=computed
    )
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        ORTQuantizer(source, config=config).quantize(options, save_dir=scratch, file_suffix=None)
        shutil.move(Path(scratch) / source.name, output)


def _products_of_computed(graph: Any) -> list[str]:
    """Return the names of the products without a weight."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    return [
        node.name for node in graph.graph.node if node.op_type in _OPERATORS and not weights.intersection(node.input)
    ]
