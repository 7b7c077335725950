"""The OpenAPI document, generated from the task table and from the models of requests and answers.

The protocols of Label Studio and X-AnyLabeling are specified by their own
documents, which their operations name; only the fields read here are described, with their bounds.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service import VERSION
from service.analysis import MAX_STEPS, StepFields
from service.inference.core import MAX_IMAGES
from service.inference.models import ServedModels
from service.inference.request_fields import CompareFields, GenerationFields, PredictFields
from service.label_studio.api import MAX_JSON_VALUES, PredictBody, SetupBody
from service.label_studio.api import PREFIX as LABEL_STUDIO_PREFIX
from service.openai.chat_requests import ChatRequest
from service.openai.completions import ChatCompletion, ChatError
from service.schema.rendering import (
    AnalysisJson,
    AnswerJson,
    ComparisonJson,
    DeletedImageJson,
    ErrorJson,
    SeveralJson,
    StoredImageJson,
)
from service.validation import BOUNDED_BY_BODY
from service.x_anylabeling.api import PREFIX as X_ANYLABELING_PREFIX
from service.x_anylabeling.api import Call
from tasks.table import TASKS

JsonObject = dict[str, Any]
Operation = tuple[str, str, JsonObject]  # method, path, document

_REF_TEMPLATE = "#/components/schemas/{model}"
_ERRORS = {
    "400": "an unknown field or an invalid value",
    "401": "no API key, or an unknown one",
    "404": "the model is not served; no such stored image",
    "410": "the stored image has expired, or was evicted or deleted; send it again",
    "413": "the image has too many pixels, or the body too many bytes",
    "415": "not a readable image",
    "422": "the model does not support the task or this variant of it",
    "429": "too many requests are queued, or a limit of the key is used up; see Retry-After",
    "503": "a runner is starting or unavailable",
    "504": "the deadline of the request has passed",
}
_LISTING_ERRORS = ("400", "401", "503")
_JSON = "application/json"
_FORM = "multipart/form-data"
_WEBHOOK = "LabelStudioEvent"
_CALL = "XAnyLabelingCall"
_STEP = "AnalysisStep"
_LABEL_STUDIO = (
    "Label Studio's ML backend protocol, https://labelstud.io/guide/ml_create, for all models or"
    " the one of the path."
)
_X_ANYLABELING = (
    "X-AnyLabeling's remote server protocol, https://github.com/CVHub520/X-AnyLabeling-Server."
)

# end of the path, summary, schema of the body to post
_Paths = Sequence[tuple[str, str, str | None]]
_LABEL_STUDIO_PATHS: _Paths = (
    ("/health", "Readiness of the models.", None),
    ("/versions", "Versions of the models, as their predictions name them.", None),
    ("/setup", "Check a labelling configuration.", SetupBody.__name__),
    ("/predict", "Predict tasks, or answer a prompt.", PredictBody.__name__),
    ("/webhook", "Accept an event, which changes nothing.", _WEBHOOK),
)
_X_ANYLABELING_PATHS: _Paths = (
    ("/health", "Return the number of served models.", None),
    ("/v1/models", "List the models with their tasks and the inputs of each.", None),
    ("/v1/models/{model}/info", "Describe a model.", None),
    ("/v1/predict", "Return the shapes or the description of an image.", _CALL),
)
_FAILED_PATHS: _Paths = (("/failed/{status}", "Repeat the error of a failed call.", None),)
# prefix, protocol, paths
_PROTOCOLS: Sequence[tuple[str, str, _Paths]] = (
    (LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _FAILED_PATHS),
    (LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _LABEL_STUDIO_PATHS),
    (f"{LABEL_STUDIO_PREFIX}/{{model}}", _LABEL_STUDIO, _LABEL_STUDIO_PATHS),
    (X_ANYLABELING_PREFIX, _X_ANYLABELING, _X_ANYLABELING_PATHS),
)
_READ = (ChatRequest, SetupBody, PredictBody, Call)
_ANSWERED = (
    *(AnswerJson, ComparisonJson, ErrorJson),
    *(ChatCompletion, ChatError),
)
_ANSWERED_ABOUT_IMAGES = (AnalysisJson, SeveralJson, StoredImageJson, DeletedImageJson)
_TEXT_IMAGE: JsonObject = {
    "type": "string",
    "description": "a data: URL, base64, an allowed http(s) URL, or the id of a stored image",
    **BOUNDED_BY_BODY,
}
_FILE_IMAGE: JsonObject = {
    "type": "string",
    "format": "binary",
    "description": "a file, or what JSON has",
    **BOUNDED_BY_BODY,
}
# one image, or several, whose answers are not streamed
_IMAGE_OR_IMAGES: JsonObject = {
    "oneOf": [{"required": ["image"]}, {"required": ["images"], "properties": {"stream": False}}]
}
_CATALOG = {
    "name": "catalog",
    "in": "query",
    "description": "true: also the catalog's models not served, each with its `serve_command`.",
    "schema": {"type": "boolean", "default": False},
}
_HEADERS: list[JsonObject] = [
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "description": "Deadline of the request; at most the service's own.",
        "schema": {"type": "integer", "minimum": 1},
    },
    {
        "name": "X-Request-Id",
        "in": "header",
        "description": "Id of the request; by default the service generates one.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
    },
]
_ANY_ANSWER: JsonObject = {
    "description": "the answer",
    "content": {_JSON: {"schema": {"type": "object"}}},
}


def openapi_document(models: ServedModels) -> JsonObject:
    paths: JsonObject = {}
    for method, path, operation in (*_own_operations(), *_protocols()):
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Diptych",
            "version": VERSION,
            "description": "Florence-2 and PaliGemma behind one typed task API, side by side.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(models),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _own_operations() -> Iterator[Operation]:
    for path, name, summary, answer in (
        ("predict", "predict", "Answer with one model.", AnswerJson),
        ("compare", "compare", "Answer with several models concurrently.", ComparisonJson),
        ("analyze", "analyze", "Answer many questions about one image.", AnalysisJson),
        ("images", "storeImage", "Store an image, which requests then name.", StoredImageJson),
    ):
        answers = (answer,) if path == "images" else (answer, SeveralJson)
        body = {_FORM: _reference(f"{name}Form"), _JSON: _reference(f"{name}Request")}
        operation = _operation(name, summary, _answer(*answers), body)
        yield "post", f"/v1/{path}", operation | {"parameters": _HEADERS}
    image_path = "/v1/images/{image_id}"
    of_image = {
        "parameters": _path_parameters(image_path),
        "description": "An image of another API key is not found.",
    }
    stored = _response("the image", _reference(StoredImageJson.__name__))
    yield "get", image_path, _operation("showImage", "Describe a stored image.", stored) | of_image
    deleted = _response("its id", _reference(DeletedImageJson.__name__))
    removed = _operation("deleteImage", "Delete a stored image.", deleted)
    yield "delete", image_path, removed | of_image
    summary = "Answer a chat message of one image and one text, as OpenAI does."
    body = {_JSON: _reference(ChatRequest.__name__)}
    completed = _answer(ChatCompletion)
    chat = _operation("createChatCompletion", summary, completed, body, error=ChatError)
    yield "post", "/v1/chat/completions", chat
    properties = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"type": "object"}},
    }
    listing = _response("the list", {"type": "object", "properties": properties})
    summary = "The served models and their comparison table."
    listed = _operation("listModels", summary, listing, statuses=_LISTING_ERRORS)
    yield "get", "/v1/models", listed | {"parameters": [_CATALOG]}
    of_base = {"type": ["string", "null"], "description": "of a LoRA adapter: the id of its base"}
    entry = _response("the entry", {"type": "object", "properties": {"adapter_of": of_base}})
    statuses = (*_LISTING_ERRORS, "404")
    model = _operation("showModel", "One entry of the list of models.", entry, statuses=statuses)
    path = "/v1/models/{model_id}"
    yield "get", path, model | {"parameters": _path_parameters(path)}
    summary = "All tasks with the schemas of their parameters."
    tasks = _operation("listTasks", summary, listing, statuses=_LISTING_ERRORS)
    yield "get", "/v1/tasks", tasks


def _protocols() -> Iterator[Operation]:
    for prefix, protocol, paths in _PROTOCOLS:
        for end, summary, schema in paths:
            body = None if schema is None else {_JSON: _reference(schema)}
            operation = _operation("", summary, _ANY_ANSWER, body)
            parameters = _path_parameters(prefix + end)
            operation |= {"description": protocol, "parameters": parameters}
            yield "get" if body is None else "post", prefix + end, operation


def _operation(
    name: str,
    summary: str,
    response: JsonObject,
    body: Mapping[str, JsonObject] | None = None,
    *,
    error: type[BaseModel] = ErrorJson,
    statuses: Iterable[str] = _ERRORS,
) -> JsonObject:
    """Return an operation; `body` has the schema of each content type that is read."""
    errors = {status: _response(_ERRORS[status], _reference(error.__name__)) for status in statuses}
    operation: JsonObject = {"summary": summary, "responses": {"200": response, **errors}}
    if name:
        operation["operationId"] = name
    if body is not None:
        content = {content_type: {"schema": schema} for content_type, schema in body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _answer(*models: type[BaseModel]) -> JsonObject:
    references = [_reference(model.__name__) for model in models]
    return _response("the answer", references[0] if len(models) == 1 else {"oneOf": references})


def _response(description: str, schema: JsonObject) -> JsonObject:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _reference(schema: str) -> JsonObject:
    return {"$ref": _REF_TEMPLATE.format(model=schema)}


def _path_parameters(path: str) -> list[JsonObject]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


def _schemas(models: ServedModels) -> JsonObject:
    read = _schemas_of(_READ, "validation")
    call = read.pop(Call.__name__)
    call["properties"]["image"] = _TEXT_IMAGE
    step = _fields(models, StepFields, CompareFields, PredictFields)
    steps = {"type": "array", "items": _reference(_STEP), "minItems": 1, "maxItems": MAX_STEPS}
    analysis = {"steps": steps, "stream": step.pop("stream")}
    return {
        **_schemas_of(_ANSWERED, "serialization"),
        **read,
        **_schemas_of(_ANSWERED_ABOUT_IMAGES, "serialization"),
        _WEBHOOK: {"type": "object", "maxProperties": MAX_JSON_VALUES},
        _CALL: call | {"title": _CALL, "required": ["image", *call["required"]]},
        _STEP: _object(step, ["id", "task"]),
        **_bodies("analyze", analysis, "steps"),
        **_task_bodies("predict", models, PredictFields),
        **_task_bodies("compare", models, CompareFields),
        "storeImageRequest": _object({"image": _TEXT_IMAGE}, ["image"]),
        "storeImageForm": _object({"image": _FILE_IMAGE}, ["image"]),
    }


def _schemas_of(models: tuple[type[BaseModel], ...], mode: JsonSchemaMode) -> JsonObject:
    modes = [(model, mode) for model in models]
    _, document = models_json_schema(modes, ref_template=_REF_TEMPLATE)
    schemas: JsonObject = document["$defs"]
    return schemas


def _task_bodies(
    name: str, models: ServedModels, fields_class: type[GenerationFields]
) -> JsonObject:
    common = dict.fromkeys(["image", "images", *fields_class.model_fields], True)
    rules: list[JsonObject] = []
    for task_id in _offered(models):
        task: JsonObject = TASKS[task_id].json_schema()
        properties = {**common, **task["properties"], "task": {"const": task_id}}
        rules.append({**task, "title": task_id, "properties": properties})
    return _bodies(name, _fields(models, fields_class), "task", {"oneOf": rules})


def _bodies(name: str, fields: JsonObject, required: str, *rules: JsonObject) -> JsonObject:
    """Return the schemas of a JSON body and of a form, about one image or several.

    Rules depend on the required field: of a `oneOf` of the whole body, generators of clients write
    a class for each alternative, or none at all.
    """
    schemas: JsonObject = {}
    for suffix, image in (("Request", _TEXT_IMAGE), ("Form", _FILE_IMAGE)):
        images = {"type": "array", "items": image, "minItems": 1, "maxItems": MAX_IMAGES}
        schema = _object({"image": image, "images": images, **fields}, [required])
        schema["dependentSchemas"] = {required: {"allOf": [_IMAGE_OR_IMAGES, *rules]}}
        schemas[name + suffix] = schema
    return schemas


def _fields(models: ServedModels, *classes: type[BaseModel]) -> JsonObject:
    """Return the fields of classes and of all tasks, with defaults in their descriptions.

    A generated client would send a default, also to a task that does not have the field.
    """
    properties: JsonObject = {}
    for fields_class in classes:
        properties |= fields_class.model_json_schema()["properties"]
    properties["task"] = {"type": "string", "enum": _offered(models)}
    for parameter in chain(*(task.parameters for task in TASKS.values())):
        schema: JsonObject = dict(parameter.json_schema())
        known = properties.get(parameter.name, {})
        if known.get("enum", schema.get("enum")) != schema.get("enum"):  # `detail` of two tasks
            schema["enum"] = [*known["enum"], *schema["enum"]]
            schema["description"] = f"{known['description']} {schema['description']}"
            del schema["default"]
        properties[parameter.name] = schema
    for schema in properties.values():
        default = schema.pop("default", None)
        if default is not None:
            schema["description"] += f" Default: {json.dumps(default)}."
            schema["x-default"] = default  # for the page
    return properties


def _offered(models: ServedModels) -> list[str]:
    offered = set(chain(*(model.entry.task_ids for model in models)))
    return [task_id for task_id in TASKS if task_id in offered]


def _object(properties: JsonObject, required: list[str]) -> JsonObject:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
