import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.jobs import ExportOptions, build_key, library_versions, plan_job
from export.errors import SourceError
from tasks.catalog import load_catalog
from tasks.scores import read_calibrations
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import CALIBRATION_FILE, Device, Part, Precision

CATALOG = load_catalog(MODELS / "catalog.yaml")
VERSIONS = {"torch": "2.13.0"}
PRECISION: dict[Device, dict[Part, Precision]] = {
    "cpu": {"encoder": "int8", "decoder": "int8"},
    "cuda": {"encoder": "float16", "decoder": "bfloat16"},
}


def test_catalog_values_are_the_defaults() -> None:
    job = plan_job(CATALOG["paligemma-mini"], ExportOptions())
    assert (job.source.name, job.entry) == ("models/paligemma-mini", CATALOG["paligemma-mini"])
    assert job.mask_decoder == MODELS / "paligemma-mini" / "vae.npz"


def test_options_override_the_catalog(tmp_path: Path) -> None:
    mask_decoder = tmp_path / "other.npz"
    mask_decoder.write_bytes((MODELS / "paligemma-mini" / "vae.npz").read_bytes())
    mask_decoder.write_bytes(mask_decoder.read_bytes() + b"more")
    options = ExportOptions(str(MODELS / "paligemma-mini"), None, mask_decoder)
    job = plan_job(CATALOG["paligemma-mini"], options)
    assert job.source.name == str(MODELS / "paligemma-mini")
    assert job.mask_decoder == mask_decoder
    assert job.build_key != plan_job(CATALOG["paligemma-mini"], ExportOptions()).build_key


def test_invalid_mask_decoder_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae.npz").write_bytes(b"PK")
    options = ExportOptions(mask_decoder=tmp_path / "vae.npz")
    with pytest.raises(SourceError, match=r"vae\.npz cannot be read"):
        plan_job(CATALOG["paligemma-mini"], options)


def test_mask_decoder_for_florence_2_is_refused() -> None:
    options = ExportOptions(mask_decoder=MODELS / "paligemma-mini" / "vae.npz")
    with pytest.raises(SourceError, match="does not use a mask decoder"):
        plan_job(CATALOG["florence-2-mini"], options)


@pytest.mark.parametrize(("checkpoint", "is_used"), [(None, True), ("another", False)])
def test_a_calibration_is_used_for_the_checkpoint_that_it_was_fitted_on(
    checkpoint: str | None, is_used: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    shutil.copytree(
        MODELS / "florence-2-mini", folder, ignore=shutil.ignore_patterns(CALIBRATION_FILE)
    )
    options = ExportOptions(str(folder))
    plain = plan_job(CATALOG["florence-2-mini"], options)
    row = {
        "model": "florence-2-mini",
        "checkpoint": checkpoint or plain.checkpoint,
        "task": "object_detection",
    }
    document = {"calibrations": [row | {"scores": [0.5], "probabilities": [1]}]}
    (folder / CALIBRATION_FILE).write_text(json.dumps(document), encoding="utf-8")
    job = plan_job(CATALOG["florence-2-mini"], options)
    assert (job.checkpoint, job.calibration) == (
        plain.checkpoint,
        folder / CALIBRATION_FILE if is_used else None,
    )
    assert (job.build_key != plain.build_key) == is_used


def test_an_invalid_calibration_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "florence-2-mini", tmp_path / "tuned")
    (tmp_path / "tuned" / CALIBRATION_FILE).write_text("{}")
    with pytest.raises(SourceError, match="is not a valid calibration file"):
        plan_job(CATALOG["florence-2-mini"], ExportOptions(str(tmp_path / "tuned")))


@pytest.mark.parametrize("model", ["florence-2-mini", "paligemma-mini"])
def test_the_embedded_models_have_calibrations_of_their_checkpoints(model: str) -> None:
    path = plan_job(CATALOG[model], ExportOptions()).calibration
    assert path == MODELS / model / CALIBRATION_FILE
    found = read_calibrations(path)
    tiled = {each.task for each in found if each.with_tiles}
    plain = {each.task: each.min_object_share for each in found if not each.with_tiles}
    assert tiled == set(plain)
    assert all(plain.values())


def test_same_content_elsewhere_has_the_same_key(tmp_path: Path) -> None:
    copy = shutil.copytree(MODELS / "florence-2-mini", tmp_path / "copy")
    keys = {
        plan_job(CATALOG["florence-2-mini"], ExportOptions(source=source)).build_key
        for source in (None, str(copy))
    }
    assert len(keys) == 1


def test_content_precision_and_versions_change_the_key() -> None:
    files = [("config.json", "0" * 64)]
    other_files = [("config.json", "1" * 64)]
    keys = {
        build_key(files, PRECISION, VERSIONS),
        build_key(other_files, PRECISION, VERSIONS),
        build_key(
            files,
            PRECISION | {"cuda": {"encoder": "float32", "decoder": "bfloat16"}},
            VERSIONS,
        ),
        build_key(files, PRECISION, {"torch": "2.14.0"}),
    }
    assert len(keys) == 4


def test_versions_include_the_export_libraries() -> None:
    assert {"torch", "transformers", "optimum", "onnxruntime"} <= library_versions().keys()


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SourceError, match="is not a folder with images; allowed are"):
            plan_job(CATALOG["florence-2-mini"], ExportOptions(images=folder))


def test_a_precision_in_which_a_part_cannot_run_is_refused() -> None:
    entry = CATALOG["florence-2-mini"]
    on_cuda: dict[Part, Precision] = {"encoder": "int8", "decoder": "float16"}
    precision: dict[Device, Any] = {**entry.precision, "cuda": on_cuda}
    message = "precision.cuda.encoder is int8; the encoder runs in float32, float16 on cuda"
    with pytest.raises(SourceError, match=message):
        plan_job(replace(entry, precision=precision), ExportOptions())
