"""Image features of an exported encoder, by the runner's session; on a CPU, those of a float16
graph are in true half arithmetic: ONNX Runtime computes the graph in float32, and every operator's
output is rounded to float16.

The rounding proves that no value between the operators of the float16 graph leaves float16's range
(65,504) in a way that reaches the features. Inside an operator, sums, normalisations and the scores
of fused attention are float32, as in the kernels of CUDA (cuBLAS, cuDNN, ONNX Runtime's
LayerNormalization, Softmax and attention). It proves nothing about kernels that also sum in
float16, which ONNX Runtime uses only on request.

Other ways are wrong on a CPU: ONNX Runtime drops the casts that it adds around the operators of a
float16 graph, and torch's SDPA keeps the products of queries and keys in float32.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor

from runners.encoder.session import Encoder, load_encoder
from wire.artifacts.manifest import Device, Precision, vision_encoder_file

_HALF = TensorProto.FLOAT16


def encode(
    folder: Path, precision: Precision, images: Sequence[Image.Image], device: Device = "cpu"
) -> Tensor:
    """Return features (B, N, C) of images of the model's size, encoded one by one."""
    encoder: Encoder | HalfEncoder
    if (precision, device) == ("float16", "cpu"):
        encoder = HalfEncoder(folder / vision_encoder_file(precision))
    else:
        encoder = load_encoder(folder, precision=precision, device=device)
    return torch.cat([encoder.encode(np.asarray(image)[None]) for image in images])


class HalfEncoder:
    """A float16 graph of a vision encoder."""

    def __init__(self, file: Path) -> None:
        model = onnx.load(file)
        round_in_float32(model)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return features (B, N, C) of RGB `pixels` (B, H, W, 3); overflows give NaN or inf."""
        (image_input,) = self._session.get_inputs()
        (features,) = self._session.run(None, {image_input.name: pixels})
        return torch.from_numpy(features)


def round_in_float32(model: ModelProto) -> None:
    """Turn a float16 graph into a float32 one that rounds each operator's output to float16."""
    graph = model.graph
    other_types = set[str]()  # outputs of operators outside ONNX have no inferred type: all half
    inferred = onnx.shape_inference.infer_shapes(model).graph
    for info in (*inferred.value_info, *inferred.output):
        if info.type.tensor_type.elem_type != _HALF:
            other_types.add(info.name)
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            _widen(attribute.t)
        for index, name in enumerate(node.output):
            if name and name not in other_types:
                exact = node.output[index] = f"{name}/exact"
                half = f"{name}/half"
                nodes.append(helper.make_node("Cast", [exact], [half], to=_HALF))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == _HALF:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
