"""The parts that all operations of the OpenAPI document are made of."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.inference.answer_places import MAX_IMAGES
from service.validation import BOUNDED_BY_BODY

JsonObject = dict[str, Any]

REF_TEMPLATE = "#/components/schemas/{model}"
ERROR_STATUSES = {
    "400": "an unknown field or an invalid value",
    "401": "no API key, or an unknown one",
    "404": "the model is not served; no such file, batch or stored image",
    "410": "the stored image has expired, or was evicted or deleted; send it again",
    "413": "the image has too many pixels, or the body too many bytes",
    "415": "not a readable image",
    "422": "the model does not support the task or this variant of it",
    "429": "too many requests are queued, or a limit of the key is used up; see Retry-After",
    "503": "a runner is starting or unavailable",
    "504": "the deadline of the request has passed",
}


def operation_of(name: str, summary: str, *answers: str) -> JsonObject:
    """Return an operation that reads a form or JSON, and answers one of `answers`."""
    types = ("multipart/form-data", "application/json")
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": body_of(name, types),
        "responses": {"200": response_of("the answer", *answers), **error_responses("ErrorJson")},
    }


def body_of(schema: str, types: tuple[str, ...] = ("application/json",)) -> JsonObject:
    body = {"schema": {"$ref": REF_TEMPLATE.format(model=schema)}}
    return {"required": True, "content": dict.fromkeys(types, body)}


def error_responses(schema: str) -> JsonObject:
    return {status: response_of(text, schema) for status, text in ERROR_STATUSES.items()}


def response_of(description: str, *models: str) -> JsonObject:
    """Return a response that is one of the models."""
    references: list[JsonObject] = [{"$ref": REF_TEMPLATE.format(model=each)} for each in models]
    schema = references[0] if len(references) == 1 else {"oneOf": references}
    return {"description": description, **json_content(schema)}


def json_content(schema: JsonObject) -> JsonObject:
    return {"content": {"application/json": {"schema": schema}}}


def foreign_operation(path: str, summary: str, description: str, error: str) -> JsonObject:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    answer = {"description": "the answer", **json_content({"type": "object"})}
    return {
        "summary": summary,
        "description": description,
        "parameters": [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
        ],
        "responses": {"200": answer} | error_responses(error),
    }


def schemas_of(models: tuple[type[BaseModel], ...], mode: JsonSchemaMode) -> JsonObject:
    _, document = models_json_schema([(model, mode) for model in models], ref_template=REF_TEMPLATE)
    schemas: JsonObject = document["$defs"]
    return schemas


_IMAGE: JsonObject = {
    "type": "string",
    "description": "in a form: a file; in JSON: a data: URL, base64, an allowed http(s) URL, or the"
    " id of a stored image",
    **BOUNDED_BY_BODY,
}
_IMAGES: JsonObject = {
    "type": "array",
    "description": "several images, each as `image`; in a form: repeated files",
    "items": _IMAGE,
    "minItems": 1,
    "maxItems": MAX_IMAGES,
}


def with_image(fields: Mapping[str, Any]) -> JsonObject:
    """Return the schema of a body of an image and `fields`."""
    properties = {"image": _IMAGE, **fields["properties"]}
    return {**fields, "properties": properties, "required": ["image", *fields["required"]]}


def with_images(fields: Mapping[str, Any]) -> JsonObject:
    """Return the schema of a body of several images and `fields`, which is not streamed."""
    others = {name: value for name, value in fields["properties"].items() if name != "stream"}
    properties = {"images": _IMAGES, **others}
    return {**fields, "properties": properties, "required": ["images", *fields["required"]]}
