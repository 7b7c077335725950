import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from export.checkpoints.jobs import ExportJob, ExportOptions, find_entry, plan_job
from export.checks.parity import ProbePlan
from export.errors import ParityError, SourceError
from export.pipeline import make_artifacts
from export.progress import Progress
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import MANIFEST_FILE

MODEL_ID = "florence-2-mini"


def quiet() -> Progress:
    return Progress(MODEL_ID, 9, io.StringIO())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a checkpoint, to change."""
    return Path(shutil.copytree(MODELS / MODEL_ID, tmp_path / "checkpoint"))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """The empty folder of an export."""
    (tmp_path / "artifacts").mkdir()
    return tmp_path / "artifacts"


def planned(checkpoint: Path) -> ExportJob:
    return replace(
        plan_job(find_entry(MODEL_ID), ExportOptions(source=str(checkpoint))), photographs=()
    )


def test_answers_that_differ_from_the_reference_are_refused(
    checkpoint: Path, artifacts: Path
) -> None:
    # one of transformers that the runners do not implement
    rules = checkpoint / "generation_config.json"
    rules.write_text(
        json.dumps(json.loads(rules.read_text(encoding="utf-8")) | {"repetition_penalty": 5.0})
    )
    with pytest.raises(ParityError, match="the reference has"):
        make_artifacts(planned(checkpoint), artifacts, quiet(), probe_plan=ProbePlan(2, 20))
    assert not (artifacts / MANIFEST_FILE).exists()


def test_a_checkpoint_of_another_size_than_its_entry_is_refused_before_anything_is_written(
    checkpoint: Path, artifacts: Path
) -> None:
    job = plan_job(find_entry("florence-2-base"), ExportOptions(source=str(checkpoint)))
    with pytest.raises(SourceError, match=r"has parameters 2610240 .*the entry: 231443968"):
        make_artifacts(job, artifacts, quiet())
    assert list(artifacts.iterdir()) == []


def test_a_decoder_that_fails_is_refused(checkpoint: Path, artifacts: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = "model.language_model.decoder.layernorm_embedding.bias"
    weights[name] = weights[name].float() + 3e38  # its products overflow
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="the decoder failed on a prompt"):
        make_artifacts(planned(checkpoint), artifacts, quiet(), probe_plan=ProbePlan(2, 4))
    assert not (artifacts / MANIFEST_FILE).exists()


def test_encoder_that_leaves_float16s_range_is_left_out_and_the_rest_is_stored(
    checkpoint: Path, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {
        name: tensor.float() for name, tensor in load_file(checkpoint / "model.safetensors").items()
    }
    # A norm follows this convolution, so only its own output grows.
    first = [name for name in weights if "vision_tower.convs.0.conv." in name]
    assert len(first) == 2
    for name in first:
        weights[name] *= 10_000
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    job = planned(checkpoint)
    job = replace(job, source=replace(job.source, name="a/repository", revision="a-commit"))
    manifest = make_artifacts(job, artifacts, quiet(), probe_plan=ProbePlan(2, 4))
    assert (manifest.source, manifest.revision) == ("a/repository", "a-commit")
    assert any(
        "float16 is left out; the default on cuda is float32 instead" in each
        for each in caplog.messages
    )
    assert manifest.precision["cuda"] == {"encoder": "float32", "decoder": "float16"}
    assert manifest.parity["encoder"].keys() == {"int8"}
    assert "vision_encoder.float16.onnx" not in {
        *manifest.files,
        *(path.name for path in artifacts.iterdir()),
    }
    assert {
        "vision_encoder.onnx",
        "vision_encoder.int8.onnx",
        "decoder.safetensors",
    } <= manifest.files.keys()


@pytest.mark.long
def test_large_models_path_gives_the_artifacts_of_a_small_one(tmp_path: Path) -> None:
    """Encoders of a child process and streamed layers: the same files and the same measurements."""
    job = replace(plan_job(find_entry("paligemma-mini"), ExportOptions()), photographs=())
    manifests = []
    for is_large in (False, True):
        folder = tmp_path / str(is_large)
        folder.mkdir()
        manifests.append(make_artifacts(job, folder, quiet(), is_large, ProbePlan(2, 4)))
    small, large = manifests
    assert large.files.keys() == small.files.keys()
    changed = {name for name in small.files if large.files[name] != small.files[name]}
    assert changed <= {"config.json"}
    assert large.parity["tokens"] == small.parity["tokens"]
    assert large.parity["decoder"] == small.parity["decoder"]
