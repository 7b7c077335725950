"""Fused operators give the features of the graphs that they replace."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.artifacts.onnx_graphs import fuse
from wire.artifacts.manifest import vision_encoder_file

ROUNDING = 1e-4  # features are up to about 16; sums have another order
# SigLIP has four layers; DaViT four pairs of blocks, of which half attend over channels, by formula
FUSED = {
    "paligemma-mini": {"FastGelu": 4, "MultiHeadAttention": 4, "Softmax": 0, "Tanh": 0},
    "florence-2-mini": {"FastGelu": 0, "MultiHeadAttention": 4, "Softmax": 4, "Tanh": 0},
}


def features(file: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = (3, *given.shape[1:])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (found,) = session.run(None, {given.name: pixels})
    return np.asarray(found)


def test_fused_operators_have_the_features_of_their_subgraphs(
    artifacts: Path, model_id: str, tmp_path: Path
) -> None:
    file = artifacts / vision_encoder_file("float32")
    model = onnx.load(file)
    fuse(model)
    operators = Counter(node.op_type for node in model.graph.node)
    assert {name: operators[name] for name in FUSED[model_id]} == FUSED[model_id]
    onnx.save(model, tmp_path / "fused.onnx")
    assert features(tmp_path / "fused.onnx") == pytest.approx(features(file), abs=ROUNDING)


def test_the_graph_for_gpus_is_fused(artifacts: Path, model_id: str) -> None:
    graph = onnx.load(artifacts / vision_encoder_file("float16")).graph
    operators = Counter(node.op_type for node in graph.node)
    assert {name: operators[name] for name in FUSED[model_id]} == FUSED[model_id]
