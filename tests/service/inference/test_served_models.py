import json
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import ServiceError
from service.inference.models import ServedModels
from service.inference.served_models import (
    adapter_model,
    base_model,
    served_entries,
    served_scoring,
    unserved_models,
)
from service.schema.rendering import catalog_json, models_json, tasks_json
from service.settings import Settings, SettingsError, read_settings
from tasks.catalog import TaskOverride
from tasks.table import TASKS
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA, ROOT
from tests.support.fake_service import CHECKPOINT, FLORENCE_ID, PALIGEMMA_ID, served, served_models
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    VISION_ENCODER_FILE,
    ArtifactError,
    Manifest,
    measured_agreement,
    read_manifest,
)

MANIFEST = served(FLORENCE).manifest


def test_agreement_of_the_served_precision(artifacts: Path, model_id: str) -> None:
    entry = CATALOG[model_id]
    manifest = read_manifest(artifacts)
    settings = Settings(device="cpu", encoder_precision="int8")
    listed = base_model(entry, manifest, artifacts, settings).describe()
    assert listed["precision"] == "encoder int8, decoder float32"
    assert listed["agreement"] == measured_agreement(manifest, "int8", "float32")
    assert 0.9 < listed["agreement"]["equal_tokens"] <= 1
    exact = base_model(entry, manifest, artifacts, Settings(device="cpu"))
    assert exact.describe()["agreement"] is None


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


def test_precision_of_an_adapter(tmp_path: Path) -> None:
    base = replace(served(FLORENCE), precision="the base's")
    entry = replace(base.entry, id="tuned", adapter_of=FLORENCE_ID)

    def precision(settings: Settings, *files: str) -> str:
        return adapter_model(entry, adapter_manifest(*files), tmp_path, base, settings).precision

    assert precision(Settings(device="cpu")) == "the base's"
    own = precision(Settings(device="cpu"), VISION_ENCODER_FILE)
    assert own == "encoder float32, decoder bfloat16"
    with pytest.raises(ArtifactError, match="the encoder of tuned cannot run in int8 on cpu"):
        precision(Settings(device="cpu", encoder_precision="int8"), VISION_ENCODER_FILE)


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
    values: dict[str, float] = {}
    for (task, with_tiles), fitted in calibrations.items():
        values[f"{task} with tiles" if with_tiles else task] = fitted.probability(0)
    return values


def test_calibrations_of_the_settings(tmp_path: Path) -> None:
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


def test_features_at_int8_are_compared_with_their_own(tmp_path: Path) -> None:
    numbers = {"mean": "AACAPw==", "components": "ADw=", "variances": [1], "residual_variance": 1}
    rows = []
    for task, precision in ((OD, "encoder int8, decoder float32"), (REGIONS, "float32")):
        images = {"precision": precision, "distances": list(range(100)), **numbers}
        rows.append(calibration(0.5, task) | {"images": images})
    write(tmp_path / CALIBRATION_FILE, *rows)
    for precision, task in (("int8", OD), ("encoder float16, decoder int8", REGIONS)):
        calibrations, _ = served_scoring(CALIBRATED, tmp_path, Settings(), precision)
        assert [name for (name, _), fitted in calibrations.items() if fitted.images] == [task]


def test_calibration_of_another_checkpoint(tmp_path: Path) -> None:
    assert served_scoring(MANIFEST, tmp_path, Settings(), "float32") == ({}, ())
    write(tmp_path / CALIBRATION_FILE)
    stale = write(tmp_path / "a.json", calibration(0.1, checkpoint="before"))
    problem = f"calibration of {FLORENCE_ID} for {OD} is of the checkpoint 'before'; the one served"
    with pytest.raises(SettingsError, match=f"DIPTYCH_CALIBRATION: the {problem}"):
        probabilities(tmp_path, stale)
    with pytest.raises(SettingsError, match=r"cannot read the calibration file .*none\.json"):
        probabilities(tmp_path, tmp_path / "none.json")


def test_models_in_openais_format() -> None:
    june = replace(FLORENCE, release_date="2024-06")
    listing = json.loads(json.dumps(models_json(served_models(june, PALIGEMMA))))
    assert listing["object"] == "list"
    assert listing["data"][0]["created"] == 1717200000  # 2024-06-01T00:00:00Z
    for entry, model in zip((june, PALIGEMMA), listing["data"], strict=True):
        assert (model["id"], model["object"]) == (entry.id, "model")
        assert model["owned_by"] == model["organization"]
        assert model["tasks"] == list(entry.task_ids)
        assert (model["family"], model["resolution"]) == (entry.family, entry.resolution)
        assert (model["parameters"], model["license"]) == (entry.parameters, entry.license)


def test_catalog_lists_unserved_models() -> None:
    values = Settings(
        models=(PALIGEMMA.id,), catalog=ROOT / "models" / "catalog.yaml", device="cpu"
    )
    models = ServedModels(
        {model.id: model for model in served_models(PALIGEMMA)}, unserved_models(values)
    )
    served, *unserved = json.loads(json.dumps(catalog_json(models)))["data"]
    (plain,) = json.loads(json.dumps(models_json(models)))["data"]
    assert served == plain | {"served": True, "serve_command": None}
    assert [model["id"] for model in unserved] == [
        model_id for model_id in CATALOG if model_id != PALIGEMMA.id
    ]
    for model in unserved:
        assert set(model) == set(served)
        assert (model["served"], model["serve_command"]) == (
            False,
            f'make serve MODELS="{model["id"]}"',
        )
    precision = {model["id"]: model["precision"] for model in unserved}
    assert precision["florence-2-base"] == "int8"
    assert precision["paligemma-2-28b-pt-896"] == "encoder float32, decoder bfloat16"


def test_tasks_list_their_models() -> None:
    without_ocr = replace(FLORENCE, tasks={"ocr": TaskOverride(None)})
    listing = json.loads(json.dumps(tasks_json(served_models(without_ocr, PALIGEMMA))))
    assert [task["id"] for task in listing["data"]] == list(TASKS)
    models = {task["id"]: task["models"] for task in listing["data"]}
    assert models["captioning"] == ["florence-2-mini", "paligemma-mini"]
    assert models["object_detection"] == ["florence-2-mini"]
    assert models["ocr"] == ["paligemma-mini"]
    assert {task["object"] for task in listing["data"]} == {"task"}


def test_served_entries_in_catalog_order() -> None:
    values = Settings(
        models=("paligemma-mini", "florence-2-mini"), catalog=ROOT / "models" / "catalog.yaml"
    )
    assert served_entries(values) == (FLORENCE, PALIGEMMA)


def test_what_is_not_served_is_named() -> None:
    values = Settings(models=("florence-2-min",), catalog=ROOT / "models" / "catalog.yaml")
    problem = r"'florence-2-min' \(did you mean florence-2-mini\?\); the catalog has flor"
    with pytest.raises(SettingsError, match=problem):
        served_entries(values)
    problem = r"model 'paligemma' is not served \(did you mean paligemma-mini\?\); the served"
    with pytest.raises(ServiceError, match=problem) as caught:
        served_models().get("paligemma")
    assert (caught.value.code, caught.value.param) == ("unknown_model", "model")
    problem = "no served model offers the task region_proposal"
    with pytest.raises(ServiceError, match=problem) as caught:
        served_models(PALIGEMMA).offering("region_proposal")
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "task")
