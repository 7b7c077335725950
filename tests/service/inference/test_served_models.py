import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.inference.served_models import (
    adapter_model,
    load_served_model,
    served_scoring,
)
from service.schema.rendering import model_json
from service.settings import Settings, SettingsError, read_settings
from tests.support.catalog import CATALOG
from tests.support.fake_service import CHECKPOINT, FLORENCE_ID, PALIGEMMA_ID, served_models
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    VISION_ENCODER_FILE,
    ArtifactError,
    Manifest,
    measured_agreement,
    read_manifest,
)

MANIFEST = served_models().get(FLORENCE_ID).manifest


def test_model_is_listed_with_the_agreement_of_the_precision_in_which_it_runs(
    artifacts: Path, model_id: str
) -> None:
    entry = CATALOG[model_id]
    listed = model_json(
        load_served_model(entry, artifacts, Settings(device="cpu", encoder_precision="int8"))
    )
    assert listed["precision"] == "encoder int8, decoder float32"
    assert listed["agreement"] == measured_agreement(read_manifest(artifacts), "int8", "float32")
    assert 0.9 < listed["agreement"]["equal_tokens"] <= 1
    assert (
        model_json(load_served_model(entry, artifacts, Settings(device="cpu")))["agreement"] is None
    )


def adapter_manifest(*files: str) -> Manifest:
    return replace(
        MANIFEST,
        model_id="tuned",
        adapter_of=FLORENCE_ID,
        base_build_key=MANIFEST.build_key,
        files=dict.fromkeys(files, "0" * 64),
        precision={
            device: {"encoder": "float32", "decoder": "bfloat16"} for device in ("cpu", "cuda")
        },
    )


@pytest.mark.parametrize(
    ("files", "precision"),
    [([], "the base's"), ([VISION_ENCODER_FILE], "encoder float32, decoder bfloat16")],
    ids=["encoder of the base", "its own"],
)
def test_an_adapter_has_the_precision_of_the_encoder_that_runs(
    tmp_path: Path, files: list[str], precision: str
) -> None:
    base = replace(served_models().get(FLORENCE_ID), precision="the base's")
    entry = replace(base.entry, id="tuned", adapter_of=FLORENCE_ID)
    assert (
        adapter_model(
            entry, adapter_manifest(*files), tmp_path, base, Settings(device="cpu")
        ).precision
        == precision
    )


def test_an_encoder_of_an_adapter_that_lacks_the_precision_of_the_settings_prevents_the_start(
    tmp_path: Path,
) -> None:
    base = served_models().get(FLORENCE_ID)
    entry = replace(base.entry, id="tuned", adapter_of=FLORENCE_ID)
    settings = Settings(device="cpu", encoder_precision="int8")
    with pytest.raises(ArtifactError, match="the encoder of tuned cannot run in int8 on cpu"):
        adapter_model(entry, adapter_manifest(VISION_ENCODER_FILE), tmp_path, base, settings)


CALIBRATED = replace(MANIFEST, files={CALIBRATION_FILE: "0" * 64})
OD = "object_detection"
REGIONS = "region_proposal"


def calibration(
    probability: float, task: str = OD, model: str = FLORENCE_ID, checkpoint: str = CHECKPOINT
) -> dict[str, object]:
    points = {"scores": [0.5], "probabilities": [probability]}
    return {"model": model, "checkpoint": checkpoint, "task": task, **points}


def write(path: Path, *rows: object) -> Path:
    path.write_text(json.dumps({"calibrations": rows}))
    return path


def probabilities(folder: Path, *files: Path | str) -> dict[str, float]:
    settings = read_settings({"DIPTYCH_CALIBRATION": ",".join(map(str, files))})
    calibrations, _ = served_scoring(CALIBRATED, folder, settings, "float32")
    found: dict[str, float] = {}
    for (task, with_tiles), each in calibrations.items():
        found[f"{task} with tiles" if with_tiles else task] = each.probability(0)
    return found


def test_the_files_of_the_settings_replace_the_calibrations_of_the_artifacts_by_task(
    tmp_path: Path,
) -> None:
    write(tmp_path / CALIBRATION_FILE, calibration(0.1), calibration(0.2, REGIONS))
    other = calibration(0.9, model=PALIGEMMA_ID, checkpoint="of another model")
    first = write(tmp_path / "a.json", other, calibration(0.3))
    second = write(tmp_path / "b.json", calibration(0.4))
    assert probabilities(tmp_path) == {OD: 0.1, REGIONS: 0.2}
    assert probabilities(tmp_path, first) == {OD: 0.3, REGIONS: 0.2}
    assert probabilities(tmp_path, first, second) == {OD: 0.4, REGIONS: 0.2}
    assert probabilities(tmp_path, "off") == {}
    tiled = write(tmp_path / "c.json", calibration(0.5) | {"with_tiles": True})
    assert probabilities(tmp_path, tiled) == {OD: 0.1, REGIONS: 0.2, f"{OD} with tiles": 0.5}


def test_artifacts_without_a_calibration_have_none(tmp_path: Path) -> None:
    assert served_scoring(MANIFEST, tmp_path, Settings(), "float32") == ({}, ())


def test_a_calibration_of_another_checkpoint_prevents_the_start(tmp_path: Path) -> None:
    write(tmp_path / CALIBRATION_FILE)
    stale = write(tmp_path / "a.json", calibration(0.1, checkpoint="before"))
    message = (
        f"DIPTYCH_CALIBRATION: the calibration of {FLORENCE_ID} for {OD} is of the checkpoint"
        " before; the one served"
    )
    with pytest.raises(SettingsError, match=message):
        probabilities(tmp_path, stale)


def test_an_unreadable_calibration_prevents_the_start(tmp_path: Path) -> None:
    write(tmp_path / CALIBRATION_FILE)
    with pytest.raises(
        SettingsError, match=r"DIPTYCH_CALIBRATION: .*none\.json is not a valid calibration file"
    ):
        probabilities(tmp_path, tmp_path / "none.json")
