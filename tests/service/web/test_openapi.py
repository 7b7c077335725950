import json
import tomllib
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.errors import InvalidRequest
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import MAX_IMAGES
from service.inference.request_fields import (
    CompareFields,
    GenerationFields,
    PredictFields,
    parse_fields,
)
from service.settings import Settings
from service.web.openapi import openapi_document
from tasks.table import TASKS
from tests.support.catalog import PALIGEMMA, ROOT
from tests.support.fake_service import PNG, data_url, served_models

DOCUMENT: dict[str, Any] = json.loads(json.dumps(openapi_document(served_models())))
IMAGE = data_url(PNG)
REGION = [1, 2, 3, 4]
STEP = {"id": "a", "task": "ocr"}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "captioning": [{}, {"detail": "paragraph"}, {"detail": "short", "language": "fil"}],
    "open_vocabulary_detection": [{"labels": ["dog"]}, {"labels": ["dog", "Käfer"]}],
    "phrase_grounding": [{"caption": "a dog; a cat"}, {"phrases": ["a dog"]}],
    "instance_segmentation": [{"phrase": "dog", "mask_format": "rle"}, {"region": REGION}],
    "ocr": [
        {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3},
        {"num_beams": 3, "constrained": False},
    ],
    "region_description": [{"region": [0, 0, 0.5, 1000000], "detail": "text"}],
    "visual_question_answering": [{"question": "why?", "language": "de"}],
}
WRONG: list[dict[str, Any]] = [
    {"task": "detect"},
    *({"task": "ocr", "labels": ["dog"]}, {"task": "ocr", "unknown": 1}),
    *({"task": "ocr", "max_new_tokens": "5"}, {"task": "ocr", "constrained": 1}),
    {"task": "captioning", "detail": "text"},
    {"task": "open_vocabulary_detection"},
    {"task": "open_vocabulary_detection", "labels": ["dog", "dog"]},
    {"task": "open_vocabulary_detection", "labels": ["dog;cat"]},
    {"task": "phrase_grounding"},
    {"task": "instance_segmentation", "phrase": "a", "region": REGION},
    {"task": "region_description", "region": [1, 2, 3]},
]


def schema(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def test_document_describes_every_route() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert DOCUMENT["info"]["version"] == project["version"]
    routes = {route.path for route in rest_app(RestBoundary(Settings())).routes}  # type: ignore[attr-defined]
    pages = "/ /metrics /openapi.json /docs /docs/start.js /playground /playground/{file:path}"
    described = {path for path in routes if "{path:path}" not in path} - set(pages.split())
    assert set(DOCUMENT["paths"]) == described


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("name", "fields_class", "extra"),
    [
        ("predict", PredictFields, {"model": "a", "stream": True}),
        ("compare", CompareFields, {"models": ["a", "b"]}),
    ],
)
def test_examples_pass_schema_and_service(
    name: str, fields_class: type[GenerationFields], extra: dict[str, Any], task: str
) -> None:
    for parameters in EXAMPLES.get(task, [{}]):
        for fields in ({"task": task, **parameters}, {"task": task, **parameters, **extra}):
            schema(f"{name}Request").validate({"image": IMAGE, **fields})
            assert parse_fields(fields_class, fields)[1].task.id == task


@pytest.mark.parametrize("fields", WRONG, ids=json.dumps)
def test_invalid_fields_fail_schema_and_service(fields: dict[str, Any]) -> None:
    assert not schema("predictRequest").is_valid({"image": IMAGE, **fields})
    with pytest.raises(InvalidRequest):
        parse_fields(PredictFields, fields)


def test_task_without_a_model_is_left_out() -> None:
    schemas = openapi_document(served_models(PALIGEMMA))["components"]["schemas"]
    for name in ("predictRequest", "compareForm", "AnalysisStep"):
        assert schemas[name]["properties"]["task"]["enum"] == list(PALIGEMMA.task_ids)
    assert not Draft202012Validator(
        {"$ref": "#/components/schemas/predictRequest", "components": {"schemas": schemas}}
    ).is_valid({"image": IMAGE, "task": "object_detection"})


def test_body_has_one_image_or_several_without_a_stream() -> None:
    for name, fields in (("predict", {"task": "ocr"}), ("analyze", {"steps": [STEP]})):
        body = schema(f"{name}Request")
        assert body.is_valid({"image": IMAGE, "stream": True, **fields})
        assert body.is_valid({"images": [IMAGE] * MAX_IMAGES, **fields})
        assert not body.is_valid({"image": IMAGE, "images": [IMAGE], **fields})
        assert not body.is_valid({"images": [], **fields})
        assert not body.is_valid(fields)
        assert not body.is_valid({"images": [IMAGE], "stream": True, **fields})


def test_request_has_no_default_that_a_generated_client_would_send() -> None:
    for name in ("predictRequest", "compareForm", "AnalysisStep", "analyzeForm"):
        properties = DOCUMENT["components"]["schemas"][name]["properties"]
        assert not [field for field in properties if "default" in properties[field]]
    assert properties["stream"]["description"].endswith("Default: false.")
