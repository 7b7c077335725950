import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.pipeline import make_artifacts
from tests.support.export_cli import MODELS

MODEL_ID = "florence-2-mini"


def test_encoder_that_leaves_float16s_range_is_left_out_and_the_rest_is_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, artifacts = Path(shutil.copytree(MODELS / MODEL_ID, tmp_path / "checkpoint")), tmp_path / "artifacts"
    weights = {name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    # A norm follows this convolution, so only its own output grows.
    first = [name for name in weights if "vision_tower.convs.0.conv." in name]
    assert len(first) == 2
    for name in first:
        weights[name] *= 10_000
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    artifacts.mkdir()
    job = replace(plan_job(find_entry(MODEL_ID), ExportOptions(source=str(checkpoint))), photographs=())
    manifest = make_artifacts(job, artifacts, num_probes=2, max_new_tokens=4)
    assert any("float16 is left out; the default on cuda is float32 instead" in each for each in caplog.messages)
    assert manifest.precision["cuda"] == {"encoder": "float32", "decoder": "float16"}
    assert manifest.parity["encoder"].keys() == {"int8"}
    assert "vision_encoder.float16.onnx" not in {*manifest.files, *(path.name for path in artifacts.iterdir())}
    assert {"vision_encoder.onnx", "vision_encoder.int8.onnx", "decoder.safetensors"} <= manifest.files.keys()
