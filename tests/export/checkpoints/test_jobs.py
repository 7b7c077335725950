import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.jobs import ExportOptions, build_key, library_versions, plan_job
from export.errors import SourceError
from tasks.errors import CheckpointFileError
from tasks.scores import read_calibrations
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import CALIBRATION_FILE, Device, Part, Precision

VAE = MODELS / "paligemma-mini" / "vae.npz"


def test_options_override_the_catalog(tmp_path: Path) -> None:
    job = plan_job(PALIGEMMA, ExportOptions())
    assert (job.source.name, job.entry) == ("models/paligemma-mini", PALIGEMMA)
    assert job.mask_decoder == VAE
    mask_decoder = tmp_path / "other.npz"
    mask_decoder.write_bytes(VAE.read_bytes() + b"more")
    options = ExportOptions(str(MODELS / "paligemma-mini"), None, mask_decoder)
    other = plan_job(PALIGEMMA, options)
    assert (other.source.name, other.mask_decoder) == (options.source, mask_decoder)
    assert other.build_key != job.build_key


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae.npz").write_bytes(b"PK")
    on_cuda: dict[Part, Precision] = {"encoder": "bfloat16", "decoder": "float16"}
    wrong = replace(FLORENCE, precision={**FLORENCE.precision, "cuda": on_cuda})
    for entry, options, message in (
        (PALIGEMMA, ExportOptions(mask_decoder=tmp_path / "vae.npz"), r"vae\.npz cannot be read"),
        (FLORENCE, ExportOptions(mask_decoder=VAE), "does not use a mask decoder"),
        (FLORENCE, ExportOptions(images=tmp_path), "is not a folder with images; allowed are"),
        (FLORENCE, ExportOptions(images=tmp_path / "missing"), "is not a folder with images"),
        (wrong, ExportOptions(), "encoder cannot run in bfloat16 on cuda; allowed: float32, fl"),
    ):
        with pytest.raises((SourceError, CheckpointFileError), match=message):
            plan_job(entry, options)


@pytest.mark.parametrize(("checkpoint", "is_used"), [(None, True), ("another", False)])
def test_a_calibration_is_used_for_its_own_checkpoint(
    checkpoint: str | None, is_used: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    ignored = shutil.ignore_patterns(CALIBRATION_FILE)
    shutil.copytree(MODELS / "florence-2-mini", folder, ignore=ignored)
    options = ExportOptions(str(folder))
    plain = plan_job(FLORENCE, options)
    row = {
        "model": "florence-2-mini",
        "checkpoint": checkpoint or plain.checkpoint,
        "task": "object_detection",
    }
    document = {"calibrations": [row | {"scores": [0.5], "probabilities": [1]}]}
    file = folder / CALIBRATION_FILE
    file.write_text(json.dumps(document), encoding="utf-8")
    job = plan_job(FLORENCE, options)
    assert (job.checkpoint, job.calibration) == (plain.checkpoint, file if is_used else None)
    assert (job.build_key != plain.build_key) == is_used
    file.write_text("{}")
    with pytest.raises(CheckpointFileError, match="is not a valid calibration file"):
        plan_job(FLORENCE, options)


@pytest.mark.parametrize("model", ["florence-2-mini", "paligemma-mini"])
def test_the_embedded_models_have_calibrations_of_their_checkpoints(model: str) -> None:
    path = plan_job(CATALOG[model], ExportOptions()).calibration
    assert path == MODELS / model / CALIBRATION_FILE
    tiled = set()
    plain = {}
    for calibration in read_calibrations(path):
        if calibration.with_tiles:
            tiled.add(calibration.task)
        else:
            plain[calibration.task] = calibration.min_object_share
    assert tiled == set(plain)
    assert all(plain.values())


def test_the_build_key_follows_everything_that_decides(tmp_path: Path) -> None:
    files = [("config.json", "0" * 64)]
    versions = {"torch": "2.13.0"}
    precision = FLORENCE.precision
    other_precision: dict[Device, Any] = {**precision, "cpu": precision["cuda"]}
    keys = {
        build_key(files, precision, versions),
        build_key([("config.json", "1" * 64)], precision, versions),
        build_key(files, other_precision, versions),
        build_key(files, precision, {"torch": "2.14.0"}),
    }
    assert len(keys) == 4
    assert {"torch", "transformers", "onnx", "onnxruntime"} <= library_versions().keys()
    copy = shutil.copytree(MODELS / "florence-2-mini", tmp_path / "copy")
    elsewhere = plan_job(FLORENCE, ExportOptions(source=str(copy)))
    assert elsewhere.build_key == plan_job(FLORENCE, ExportOptions()).build_key
