import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.artifacts.vision_module import read_image_input
from export.checkpoints.bases import CheckpointFacts
from export.checkpoints.jobs import ExportJob, ExportOptions, find_entry, plan_job
from export.checkpoints.sources import in_transformers_form
from export.checkpoints.tensors import CheckpointTensors
from export.checks.parity import ProbePlan
from export.checks.reference import load_processor
from export.errors import ParityError
from export.pipeline import make_artifacts
from laboratory.bench.random_weights import (
    PALIGEMMA_3B,
    florence2,
    paligemma,
    write_random_checkpoint,
)
from tests.support.export_cli import MODELS
from tests.support.microsoft_form import update_json
from wire.artifacts.manifest import MANIFEST_FILE, Manifest, read_manifest, verify_files

MODEL_ID = "florence-2-mini"
PROBES = ProbePlan(2, 12)  # real widths take seconds per image


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a checkpoint, to change."""
    return Path(shutil.copytree(MODELS / MODEL_ID, tmp_path / "checkpoint"))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """The empty folder of an export."""
    (tmp_path / "artifacts").mkdir()
    return tmp_path / "artifacts"


def planned(checkpoint: Path, model_id: str = MODEL_ID) -> ExportJob:
    job = plan_job(find_entry(model_id), ExportOptions(source=str(checkpoint)))
    return replace(job, photographs=())


def make(job: ExportJob, folder: Path, is_large: bool = False) -> Manifest:
    return make_artifacts(job, folder, is_large, ProbePlan(2, 20))


def change_weights(
    checkpoint: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Change the weights whose names have a part."""
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    for weight_name, weight in weights.items():
        weights[weight_name] = change(weight.float()) if name in weight_name else weight.float()
    save_file(weights, file, metadata={"format": "pt"})


def repeat_penalty(checkpoint: Path) -> None:
    """A rule of transformers that the runners do not implement."""
    update_json(checkpoint / "generation_config.json", repetition_penalty=5.0)


def overflow(checkpoint: Path) -> None:
    change_weights(checkpoint, "decoder.layernorm_embedding.bias", lambda bias: bias + 3e38)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(repeat_penalty, "the reference has"), (overflow, "the decoder failed on a prompt")],
)
def test_answers_that_differ_are_refused(
    spoil: Callable[[Path], None], message: str, checkpoint: Path, artifacts: Path
) -> None:
    spoil(checkpoint)
    with pytest.raises(ParityError, match=message):
        make(planned(checkpoint), artifacts)
    assert not (artifacts / MANIFEST_FILE).exists()


def test_an_encoder_that_leaves_float16s_range_is_left_out(
    checkpoint: Path, artifacts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A norm follows this convolution, so only its own output grows.
    change_weights(checkpoint, "vision_tower.convs.0.conv.", lambda weight: weight * 10_000)
    job = planned(checkpoint)
    source = replace(job.source, name="a/repository", revision="a-commit")
    manifest = make(replace(job, source=source), artifacts)
    assert (manifest.source, manifest.revision) == ("a/repository", "a-commit")
    assert "float16 is left out; the default on cuda is float32 instead" in caplog.text
    assert manifest.precision["cuda"] == {"encoder": "float32", "decoder": "float16"}
    assert manifest.parity["encoder"].keys() == {"int8"}
    encoders = {"vision_encoder.onnx", "vision_encoder.int8.onnx"}
    assert {name for name in manifest.files if name.endswith(".onnx")} == encoders
    assert {path.name for path in artifacts.glob("*.onnx")} == encoders


@pytest.mark.long
def test_a_large_models_path_gives_the_artifacts_of_a_small_one(tmp_path: Path) -> None:
    """Encoders of a child process and streamed layers: the same files and the same measurements."""
    job = replace(plan_job(find_entry("paligemma-mini"), ExportOptions()), photographs=())
    manifests = []
    for is_large in (False, True):
        folder = tmp_path / str(is_large)
        folder.mkdir()
        manifests.append(make(job, folder, is_large))
    small, large = manifests
    assert large.files.keys() == small.files.keys()
    changed = {name for name in small.files if large.files[name] != small.files[name]}
    assert changed <= {"config.json"}
    assert large.parity["tokens"] == small.parity["tokens"]
    assert large.parity["decoder"] == small.parity["decoder"]


SHAPES = {
    "florence-2-large": florence2(1024, 256, 12, 4096),
    "paligemma-3b-mix-224": PALIGEMMA_3B,
    "paligemma-3b-pt-896": paligemma(896),
}


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Florence-2-large with a quarter of its pixels: the widths are under test, and full images
    take two minutes.
    """
    small = replace(SHAPES["florence-2-large"], image_size_px=384, num_image_tokens=12 * 12 + 1)
    monkeypatch.setitem(SHAPES, "florence-2-large", small)


@pytest.mark.long
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    "name", ["florence-2-large", "paligemma-3b-mix-224", "paligemma-3b-pt-896"]
)
def test_real_widths_pass_parity(name: str, tmp_path: Path, artifacts: Path) -> None:
    write_random_checkpoint(SHAPES[name], tmp_path / "checkpoint", max_layers=1)
    mask_decoder = MODELS / "paligemma-mini" / "vae.npz" if name.startswith("paligemma") else None
    options = ExportOptions(source=str(tmp_path / "checkpoint"), mask_decoder=mask_decoder)
    job = plan_job(find_entry(name), options)
    with in_transformers_form(job.source) as source:
        tensors = CheckpointTensors.open(source.folder)
        image_input = read_image_input(load_processor(source.folder).image_processor)
    # the entry of the released model, with the numbers of the small one
    side_px, _ = image_input.size_wh
    facts = CheckpointFacts(tensors.num_parameters, tensors.context_window, side_px)
    entry = facts.applied_to(job.entry)
    small = replace(job, entry=entry, photographs=())
    manifest = make_artifacts(small, artifacts, probe_plan=PROBES)
    assert manifest == read_manifest(artifacts)
    verify_files(artifacts, manifest)
    assert manifest.num_image_tokens == SHAPES[name].num_image_tokens
    assert manifest.image_size_wh == (SHAPES[name].image_size_px,) * 2
    assert manifest.parity["tokens"]["num_prompts"] == PROBES.num_probes
