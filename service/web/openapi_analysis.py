"""Analyses and stored images in the OpenAPI document."""

from itertools import chain

from service.analysis.steps import StepFields
from service.image_settings import MAX_STEPS
from service.inference.request_fields import CompareFields, PredictFields
from service.inference.served_models import ServedModels
from service.schema.analysis import AnalysisJson, SeveralJson
from service.schema.wire import DeletedImageJson, StoredImageJson
from service.web.openapi_parts import (
    JsonObject,
    error_responses,
    operation_of,
    response_of,
    schemas_of,
    with_image,
    with_images,
)
from tasks.table import TASKS

_ID = {"name": "image_id", "in": "path", "required": True, "schema": {"type": "string"}}


def analysis_paths() -> JsonObject:
    """Return the paths of analyses and stored images."""
    refused = error_responses("ErrorJson")
    stored = {"200": response_of("the image", StoredImageJson.__name__), **refused}
    deleted = {"200": response_of("its id", DeletedImageJson.__name__), **refused}
    of_id = {"parameters": [_ID], "description": "An image of another API key is not found."}
    return {
        "/v1/analyze": {
            "post": operation_of(
                "analyze", "Answer many questions about one image.", "AnalysisJson", "SeveralJson"
            )
        },
        "/v1/images": {
            "post": operation_of(
                "storeImage", "Store an image, which requests then name.", StoredImageJson.__name__
            )
        },
        "/v1/images/{image_id}": {
            "get": {
                "operationId": "showImage",
                "summary": "Describe a stored image.",
                "responses": stored,
                **of_id,
            },
            "delete": {
                "operationId": "deleteImage",
                "summary": "Delete a stored image.",
                "responses": deleted,
                **of_id,
            },
        },
    }


def analysis_schemas(models: ServedModels) -> JsonObject:
    """Return the schemas of their bodies."""
    steps = {
        "type": "array",
        "items": step_schema(models),
        "minItems": 1,
        "maxItems": MAX_STEPS,
    }
    stream = PredictFields.model_json_schema()["properties"]["stream"]
    fields: JsonObject = {
        "type": "object",
        "properties": {"steps": steps, "stream": stream},
        "required": ["steps"],
        "additionalProperties": False,
    }
    no_fields: JsonObject = {
        "type": "object",
        "properties": {},
        "required": [],
        "additionalProperties": False,
    }
    answers = (AnalysisJson, SeveralJson, StoredImageJson, DeletedImageJson)
    return {
        **schemas_of(answers, "serialization"),
        "analyze": {"oneOf": [with_image(fields), with_images(fields)]},
        "storeImage": with_image(no_fields),
    }


def step_schema(models: ServedModels) -> JsonObject:
    """Return the fields of a step of any task; those of its task are in `predict`."""
    offered = set(chain(*(model.entry.task_ids for model in models)))
    properties: JsonObject = {
        **StepFields.model_json_schema()["properties"],
        **CompareFields.model_json_schema()["properties"],
        **PredictFields.model_json_schema()["properties"],
        "task": {"enum": [task_id for task_id in TASKS if task_id in offered]},
    }
    del properties["stream"]
    for parameter in chain(*(task.parameters for task in TASKS.values())):
        schema: JsonObject = dict(parameter.json_schema())
        known = properties.get(parameter.name, {}).get("enum")
        if known is not None:  # `detail` has other values for each task
            schema = {"type": "string", "enum": list(dict.fromkeys([*known, *schema["enum"]]))}
        properties[parameter.name] = schema
    return {
        "type": "object",
        "properties": properties,
        "required": ["id", "task"],
        "additionalProperties": False,
    }
