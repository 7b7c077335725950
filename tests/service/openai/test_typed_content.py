"""`response_format`: the typed result as JSON, matched with a schema of the client."""

import json
from typing import Any

import pytest

from tests.service.openai.test_chat import PATH, body, content_of
from tests.support.rest_client import OCR, client

DETECT = "<OPEN_VOCABULARY_DETECTION>red circle"
FIELDS = {"task": "open_vocabulary_detection", "labels": ["red circle"]}
DETECTION = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "box": {"type": "array", "items": {"type": "number"}},
        "score": {"type": "number"},
    },
    "required": ["label", "box", "score"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"detections": {"type": "array", "items": {"$ref": "#/$defs/Detection"}}},
    "required": ["detections"],
    "$defs": {"Detection": DETECTION},
}
EXPONENTIAL: dict[str, Any] = {
    "$ref": "#/$defs/a0",
    "$defs": {
        **{f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)},
        "a40": {"type": "string"},
    },
}


def with_schema(schema: object) -> dict[str, Any]:
    response_format = {"type": "json_schema", "json_schema": {"name": "found", "schema": schema}}
    return body(DETECT, response_format=response_format)


def refusal(request_body: dict[str, Any]) -> str:
    response = client().send("POST", PATH, json=request_body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("response_format")
    return str(response.json()["error"]["message"])


@pytest.mark.parametrize(
    "request_body", [body(DETECT, response_format={"type": "json_object"}), with_schema(SCHEMA)]
)
def test_content_is_the_result(request_body: dict[str, Any]) -> None:
    predicted = client().predict({**OCR, **FIELDS, "model": request_body["model"]}).json()
    assert json.loads(content_of(request_body)) == predicted["result"]
    assert predicted["result"]["detections"][0]["score"] > 0


def test_streamed_result_is_one_piece() -> None:
    chat = with_schema(SCHEMA)
    response = client().send("POST", PATH, json={**chat, "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if "{" in line]
    pieces = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [piece for piece in pieces if piece] == [content_of(chat)]


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "object", "required": ["boxes"]}, "does not match"),
        ({"type": "thing"}, "is not a JSON Schema: $.type"),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "too many alternatives"),
        (EXPONENTIAL, "too many alternatives"),
        ({"$ref": "http://127.0.0.1/schema.json"}, "outside itself"),
        ({"patternProperties": {"(a+)+x": {}}}, "uses patternProperties"),
        ({"properties": {"a": {"enum": ["x" * 20_001]}}}, "20,000 characters"),
        ({"enum": list(range(1_999))}, "2,000 values"),  # beside the list and the schema
    ],
)
def test_unfit_schema_is_refused(schema: dict[str, Any], problem: str) -> None:
    assert problem in refusal(with_schema(schema))


def test_schema_is_checked_before_a_stream() -> None:
    assert "is not a JSON Schema" in refusal({**with_schema({"type": "thing"}), "stream": True})


def test_largest_schema_is_accepted() -> None:
    assert "does not match" in refusal(with_schema({"enum": list(range(1_998))}))


def test_deep_and_missing_schemas() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"not": deep}
    assert "32 levels" in refusal(with_schema(deep))
    assert "with type json_schema" in refusal(body(response_format={"type": "json_schema"}))
