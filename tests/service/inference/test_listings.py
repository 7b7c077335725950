import dataclasses
import json

import pytest
from jsonschema import Draft202012Validator

from service.errors import UnknownModel, UnsupportedTask
from service.inference.served_models import ServedModels, served_entries, unserved_models
from service.schema.rendering import catalog_json, models_json, tasks_json
from service.settings import Settings, SettingsError
from tasks.catalog import TaskOverride
from tasks.table import TASKS
from tests.support.catalog import CATALOG, FLORENCE, PALIGEMMA, ROOT
from tests.support.fake_service import served_models

COMPARISON = {
    *(
        "family",
        "organization",
        "category",
        "modality",
        "release_date",
        "context_window",
        "parameters",
        "license",
    ),
    *(
        "tasks",
        "features",
        "resolution",
        "precision",
        "agreement",
        "checkpoint",
        "calibrated_tasks",
        "calibration",
        "proofs",
        "adapter_of",
    ),
}


def test_models_are_in_the_list_format_of_openai() -> None:
    listing = models_json(served_models())
    assert listing["object"] == "list"
    assert [model["id"] for model in listing["data"]] == ["florence-2-mini", "paligemma-mini"]
    for model in listing["data"]:
        assert model["object"] == "model"
        assert model["owned_by"] == model["organization"]
        assert isinstance(model["created"], int)


def test_models_have_their_metadata() -> None:
    for entry, model in zip(
        (FLORENCE, PALIGEMMA), models_json(served_models())["data"], strict=True
    ):
        assert set(model) == {"id", "object", "created", "owned_by"} | COMPARISON
        assert model["tasks"] == list(entry.task_ids)
        assert (model["family"], model["resolution"]) == (entry.family, entry.resolution)
        assert (model["parameters"], model["license"]) == (entry.parameters, entry.license)


def test_created_is_the_start_of_the_release_month() -> None:
    entry = dataclasses.replace(FLORENCE, release_date="2024-06")
    (model,) = models_json(served_models(entry))["data"]
    assert model["created"] == 1717200000  # 2024-06-01T00:00:00Z


def test_every_entry_of_the_catalog_can_be_listed() -> None:
    listing = json.loads(json.dumps(models_json(served_models(*CATALOG.values()))))
    assert [model["id"] for model in listing["data"]] == list(CATALOG)


def test_catalog_adds_the_models_that_are_not_served_with_the_command_that_serves_each() -> None:
    values = Settings(
        models=(PALIGEMMA.id,), catalog=ROOT / "models" / "catalog.yaml", device="cpu"
    )
    models = ServedModels(
        {model.id: model for model in served_models(PALIGEMMA)}, unserved_models(values)
    )
    served, *unserved = json.loads(json.dumps(catalog_json(models)))["data"]
    (plain,) = models_json(models)["data"]
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


def test_every_task_is_listed_with_the_models_that_offer_it() -> None:
    listing = json.loads(json.dumps(tasks_json(served_models())))
    assert [task["id"] for task in listing["data"]] == list(TASKS)
    models = {task["id"]: task["models"] for task in listing["data"]}
    assert models["captioning"] == ["florence-2-mini", "paligemma-mini"]
    assert models["object_detection"] == ["florence-2-mini"]
    assert models["visual_question_answering"] == ["florence-2-mini", "paligemma-mini"]
    assert {task["object"] for task in listing["data"]} == {"task"}


def test_task_that_no_served_model_offers_is_listed_without_models() -> None:
    listing = tasks_json(served_models(PALIGEMMA))
    assert [task["models"] for task in listing["data"] if task["id"] == "object_detection"] == [[]]


def test_task_that_an_entry_adds_or_removes_is_listed_accordingly() -> None:
    overrides = {
        "ocr": TaskOverride(None),
        "visual_question_answering": TaskOverride("<DocVQA>{question}"),
    }
    listing = tasks_json(served_models(dataclasses.replace(FLORENCE, tasks=overrides)))
    models = {task["id"]: task["models"] for task in listing["data"]}
    assert (models["ocr"], models["visual_question_answering"]) == ([], ["florence-2-mini"])


def test_schema_of_every_task_is_json_schema_with_a_description_of_each_parameter() -> None:
    for task in tasks_json(served_models())["data"]:
        Draft202012Validator.check_schema(task["parameters"])
        assert all(schema["description"] for schema in task["parameters"]["properties"].values())
        assert task["description"]
        assert task["result"] in ("text", "detections", "instances", "text_regions")


def test_served_entries_are_in_the_order_of_the_catalog() -> None:
    values = Settings(
        models=("paligemma-mini", "florence-2-mini"), catalog=ROOT / "models" / "catalog.yaml"
    )
    assert served_entries(values) == (FLORENCE, PALIGEMMA)


def test_unknown_model_in_the_settings_lists_the_catalog() -> None:
    values = Settings(models=("florence-2-min",), catalog=ROOT / "models" / "catalog.yaml")
    with pytest.raises(
        SettingsError,
        match=r"'florence-2-min' \(did you mean florence-2-mini\?\); the catalog has flor",
    ):
        served_entries(values)


def test_unknown_model_lists_the_served_models() -> None:
    with pytest.raises(
        UnknownModel,
        match=r"model 'paligemma' is not served \(did you mean paligemma-mini\?\);"
        " the served models are florence-2-mini, paligemma-mini",
    ) as caught:
        served_models().get("paligemma")
    assert caught.value.param == "model"


def test_long_model_id_is_truncated_in_the_message() -> None:
    with pytest.raises(UnknownModel) as caught:
        served_models().get("x" * 10_000)
    assert len(caught.value.message) < 500


def test_task_that_no_served_model_offers_is_unsupported() -> None:
    with pytest.raises(
        UnsupportedTask, match="no served model offers the task region_proposal"
    ) as caught:
        served_models(PALIGEMMA).offering("region_proposal")
    assert caught.value.param == "task"
