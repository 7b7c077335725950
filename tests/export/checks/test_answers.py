import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from export.checkpoints.jobs import ExportJob, ExportOptions, plan_job
from export.checks.answers import AnswerCheck, AnswerRuns, agreeing_defaults
from export.checks.parity import MIN_MEAN_COSINE, compare
from runners.encoder.session import VisionEncoder
from tests.support.catalog import FLORENCE
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import Precision, read_manifest, vision_encoder_file

INT8_ON_CPU = replace(
    FLORENCE, precision={**FLORENCE.precision, "cpu": {"encoder": "int8", "decoder": "float32"}}
)


@pytest.fixture
def folder(exported: ModelStore, tmp_path: Path) -> Path:
    """A copy of florence-2-mini's artifacts."""
    return Path(shutil.copytree(exported.newest(FLORENCE.id), tmp_path / "artifacts"))


def check_of(folder: Path, job: ExportJob | None = None) -> AnswerCheck:
    # Without photographs: scenes decide about the embedded models.
    job = job or replace(plan_job(INT8_ON_CPU, ExportOptions()), photographs=())
    return AnswerCheck.of(job, folder, read_manifest(folder))


def measured(
    folder: Path, encoder: tuple[Precision, ...] = (), decoder: tuple[Precision, ...] = ()
) -> AnswerRuns:
    return check_of(folder).measure({"encoder": encoder, "decoder": decoder})


def disturb(file: Path, strength: float) -> None:
    """Add noise to the scales of the quantised weights."""
    model = onnx.load(file)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale"):
            scale = numpy_helper.to_array(tensor)
            noisy = (scale * (1 + strength * rng.standard_normal(scale.shape))).astype(scale.dtype)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, file)


def test_int8_that_answers_as_float32_does_stays_the_default(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = measured(folder, encoder=("int8",))
    assert runs.decided_by == "scenes"
    (run,) = runs.runs
    assert (run.encoder, run.decoder, run.num_pictures) == ("int8", "float32", 12)
    assert (
        agreeing_defaults(FLORENCE.id, INT8_ON_CPU.precision, runs.deciding)
        == INT8_ON_CPU.precision
    )
    assert not caplog.messages


def test_disturbed_int8_is_refused_by_its_answers_though_its_cosine_is_high(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disturb(folder / vision_encoder_file("int8"), 0.2)
    pixels = np.stack([np.asarray(picture.image) for picture in check_of(folder).pictures])
    int8, float32 = (encode(folder, precision, pixels) for precision in ("int8", "float32"))
    assert compare("the int8 encoder", int8, float32).mean_cosine > 0.95 > MIN_MEAN_COSINE
    runs = measured(folder, encoder=("int8",))
    kept = agreeing_defaults(FLORENCE.id, INT8_ON_CPU.precision, runs.deciding)
    assert kept == FLORENCE.precision
    (message,) = caplog.messages
    assert message.startswith(
        "florence-2-mini on cpu: the int8 encoder does not answer as float32 does: equal tokens 0."
    )
    assert (
        "at least 0.90 required, on 12 scenes; the default of the encoder is float32 instead"
        in message
    )


def encode(folder: Path, precision: Precision, pixels: NDArray[np.uint8]) -> torch.Tensor:
    encoder = VisionEncoder(folder, precision=precision)
    encoder.load()
    return encoder.encode(pixels).flatten(end_dim=1)


def test_answers_of_an_encoder_that_returns_nan_agree_with_nothing(folder: Path) -> None:
    file = folder / vision_encoder_file("float16")
    model = onnx.load(file)
    halves = [
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT16
    ]
    halves[0].CopyFrom(
        numpy_helper.from_array(
            np.full_like(numpy_helper.to_array(halves[0]), np.nan), halves[0].name
        )
    )
    onnx.save(model, file)
    (run,) = measured(folder, encoder=("float16",)).runs
    assert (run.num_pictures, run.agreement.equal_tokens, run.agreement.matched_boxes) == (2, 0, 0)


def test_default_pair_of_a_device_is_also_measured_together(folder: Path) -> None:
    entry = replace(
        FLORENCE, precision={**FLORENCE.precision, "cpu": {"encoder": "int8", "decoder": "int8"}}
    )
    job = replace(plan_job(entry, ExportOptions()), photographs=())
    runs = check_of(folder, job).measure({"encoder": ("int8",), "decoder": ("int8",)}).runs
    assert [(run.encoder, run.decoder) for run in runs] == [
        ("int8", "float32"),
        ("float32", "int8"),
        ("int8", "int8"),
    ]
    assert all(run.agreement.num_prompts == 28 for run in runs)


def test_own_images_are_added_to_the_photographs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    Image.new("RGB", (64, 48), "red").save(tmp_path / "own" / "red-wall.PNG")
    (tmp_path / "own" / "notes.txt").write_text("no image")
    job = plan_job(FLORENCE, ExportOptions(images=tmp_path / "own"))
    without = plan_job(FLORENCE, ExportOptions())
    assert job.build_key != without.build_key
    pictures = check_of(folder, job).pictures
    before = check_of(folder, without).pictures
    assert len(before) == 24 + 12
    assert [each.subject for each in pictures if each.kind == "photographs"][24:] == ["red wall"]


def test_a_larger_model_answers_fewer_prompts_and_all_about_own_images(
    folder: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "wall.png")
    large = replace(FLORENCE, parameters=3_000_000_000)
    job = replace(plan_job(large, ExportOptions(images=tmp_path)), record=None)
    manifest = replace(read_manifest(folder), num_image_tokens=256)
    check = AnswerCheck.of(job, folder, manifest)
    assert [picture.subject for picture in check.pictures][8:] == ["wall"]
    assert len(check.questions) == 8 + 1
