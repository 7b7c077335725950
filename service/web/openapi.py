"""The OpenAPI document, generated from the task table and from the models of requests and answers.

The protocols of Open Inference, Label Studio and X-AnyLabeling are specified by their own
documents, which their operations name; only the fields read here are described, with their bounds.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service import VERSION
from service.analysis import StepFields
from service.batches.uploads import MAX_FILE_BYTES, MAX_FORM_BYTES
from service.batches.wire import Batch, BatchList, BatchRequest, FileDeleted, FileList, FileObject
from service.inference.core import MAX_IMAGES
from service.inference.request_fields import CompareFields, GenerationFields, PredictFields
from service.inference.served_models import ServedModels
from service.label_studio.api import MAX_JSON_VALUES, PredictBody, SetupBody
from service.label_studio.api import PREFIX as LABEL_STUDIO_PREFIX
from service.open_inference.http_api import PREFIX as OPEN_INFERENCE_PREFIX
from service.open_inference.http_api import InferJson, OpenInferenceError
from service.openai.wire import ChatCompletion, ChatError, ChatRequest
from service.schema.rendering import (
    AnalysisJson,
    AnswerJson,
    ComparisonJson,
    DeletedImageJson,
    ErrorJson,
    SeveralJson,
    StoredImageJson,
)
from service.settings import MAX_STEPS
from service.validation import BOUNDED_BY_BODY
from service.x_anylabeling.api import PREFIX as X_ANYLABELING_PREFIX
from service.x_anylabeling.api import Call
from tasks.table import TASKS

JsonObject = dict[str, Any]
Operations = Mapping[str, tuple[str, str | None]]  # path: summary, schema of the body to post

_REF_TEMPLATE = "#/components/schemas/{model}"
_ERRORS = {
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
_LISTING_ERRORS = ("400", "401", "503")
_JSON = "application/json"
_FORM = "multipart/form-data"
_WEBHOOK = "LabelStudioEvent"
_CALL = "XAnyLabelingCall"
_INFER = "Answer with one model: inputs are the fields of /v1/predict, `result` is its body."
_OPEN_INFERENCE = (
    "Open Inference Protocol v2, https://github.com/kserve/open-inference-protocol, with binary"
    " tensor data."
)
_LABEL_STUDIO = (
    "Label Studio's ML backend protocol, https://labelstud.io/guide/ml_create, for all models or"
    " the one of the path."
)
_X_ANYLABELING = (
    "X-AnyLabeling's remote server protocol, https://github.com/CVHub520/X-AnyLabeling-Server."
)
_BATCHES = "OpenAI's Files and Batches, https://platform.openai.com/docs/api-reference/batch."

_SERVER_PATHS: Operations = {
    "": ("Metadata of the server.", None),
    "/health/live": ("Liveness.", None),
    "/health/ready": ("Readiness of every model.", None),
}
_MODEL_PATHS: Operations = {
    "": ("Inputs and output of a model.", None),
    "/config": ("Configuration of a model, as Triton's load tools request it.", None),
    "/ready": ("Readiness of a model.", None),
    "/infer": (_INFER, InferJson.__name__),
}
_FAILED_PATHS: Operations = {"/failed/{status}": ("Repeat the error of a failed call.", None)}
_LABEL_STUDIO_PATHS: Operations = {
    "/health": ("Readiness of the models.", None),
    "/versions": ("Versions of the models, as their predictions name them.", None),
    "/setup": ("Check a labelling configuration.", SetupBody.__name__),
    "/predict": ("Predict tasks, or answer a prompt.", PredictBody.__name__),
    "/webhook": ("Accept an event, which changes nothing.", _WEBHOOK),
}
_X_ANYLABELING_PATHS: Operations = {
    "/health": ("Return the number of served models.", None),
    "/v1/models": ("List the models with their tasks and the inputs of each.", None),
    "/v1/models/{model}/info": ("Describe a model.", None),
    "/v1/predict": ("Return the shapes or the description of an image.", _CALL),
}
_MODEL = f"{OPEN_INFERENCE_PREFIX}/models/{{model}}"
# prefix, protocol, operations, error
_PROTOCOLS: tuple[tuple[str, str, Operations, type[BaseModel]], ...] = (
    (OPEN_INFERENCE_PREFIX, _OPEN_INFERENCE, _SERVER_PATHS, OpenInferenceError),
    (_MODEL, _OPEN_INFERENCE, _MODEL_PATHS, OpenInferenceError),
    (f"{_MODEL}/versions/{{version}}", _OPEN_INFERENCE, _MODEL_PATHS, OpenInferenceError),
    (LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _FAILED_PATHS, ErrorJson),
    (LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _LABEL_STUDIO_PATHS, ErrorJson),
    (f"{LABEL_STUDIO_PREFIX}/{{model}}", _LABEL_STUDIO, _LABEL_STUDIO_PATHS, ErrorJson),
    (X_ANYLABELING_PREFIX, _X_ANYLABELING, _X_ANYLABELING_PATHS, ErrorJson),
)
# path, method: summary, answer
_BATCH_OPERATIONS: Mapping[tuple[str, str], tuple[str, type[BaseModel] | None]] = {
    ("/v1/files", "post"): ("Upload a JSON Lines file of requests.", FileObject),
    ("/v1/files", "get"): ("List the files of the API key.", FileList),
    ("/v1/files/{file_id}", "get"): ("Describe a file.", FileObject),
    ("/v1/files/{file_id}", "delete"): ("Delete a file.", FileDeleted),
    ("/v1/files/{file_id}/content", "get"): ("Return the content of a file.", None),
    ("/v1/batches", "post"): ("Answer a file's requests in the gaps of online traffic.", Batch),
    ("/v1/batches", "get"): ("List the batches of the API key.", BatchList),
    ("/v1/batches/{batch_id}", "get"): ("Describe a batch.", Batch),
    ("/v1/batches/{batch_id}/cancel", "post"): ("Cancel a batch.", Batch),
}
_QUERIES: Mapping[type[BaseModel] | None, tuple[str, ...]] = {
    FileList: ("limit", "after", "order", "purpose"),
    BatchList: ("limit", "after"),
}
_READ = (ChatRequest, BatchRequest, InferJson, SetupBody, PredictBody, Call)
_ANSWERED = (
    *(AnswerJson, ComparisonJson, ErrorJson),
    *(ChatCompletion, ChatError, OpenInferenceError),
    *(FileObject, FileList, FileDeleted, Batch, BatchList),
)
_ANSWERED_ABOUT_IMAGES = (AnalysisJson, SeveralJson, StoredImageJson, DeletedImageJson)
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
_CATALOG = {
    "name": "catalog",
    "in": "query",
    "description": "true: also the catalog's models not served, each with its `serve_command`.",
    "schema": {"type": "boolean", "default": False},
}
_ANY_ANSWER: JsonObject = {
    "description": "the answer",
    "content": {_JSON: {"schema": {"type": "object"}}},
}
_UPLOAD_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "maxLength": MAX_FILE_BYTES},
        "purpose": {"const": "batch"},
    },
    "additionalProperties": {"type": "string"},  # expires_after[…]
    "maxProperties": MAX_FORM_BYTES,  # a limit in bytes also bounds the number
}


def openapi_document(models: ServedModels) -> JsonObject:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Diptych",
            "version": VERSION,
            "description": "Florence-2 and PaliGemma behind one typed task API, side by side.",
        },
        "paths": {**_own_paths(), **_batch_paths(), **_protocol_paths()},
        "components": {
            "schemas": _schemas(models),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _own_paths() -> JsonObject:
    return {
        "/v1/predict": _answering("predict", "Answer with one model.", AnswerJson, SeveralJson),
        "/v1/compare": _answering(
            "compare", "Answer with several models concurrently.", ComparisonJson, SeveralJson
        ),
        "/v1/analyze": _answering(
            "analyze", "Answer many questions about one image.", AnalysisJson, SeveralJson
        ),
        "/v1/images": _answering(
            "storeImage", "Store an image, which requests then name.", StoredImageJson
        ),
        "/v1/images/{image_id}": _image_operations("/v1/images/{image_id}"),
        "/v1/chat/completions": {
            "post": _operation(
                "createChatCompletion",
                "Answer a chat message of one image and one text, as OpenAI does.",
                _answer(ChatCompletion),
                {_JSON: _reference(ChatRequest.__name__)},
                error=ChatError,
            )
        },
        **_listing_paths(),
    }


def _answering(name: str, summary: str, *answers: type[BaseModel]) -> JsonObject:
    body = {_FORM: _reference(name), _JSON: _reference(name)}
    return {"post": _operation(name, summary, _answer(*answers), body)}


def _image_operations(path: str) -> JsonObject:
    stored = _response("the image", _reference(StoredImageJson.__name__))
    deleted = _response("its id", _reference(DeletedImageJson.__name__))
    of_image = {
        "parameters": _path_parameters(path),
        "description": "An image of another API key is not found.",
    }
    return {
        "get": _operation("showImage", "Describe a stored image.", stored) | of_image,
        "delete": _operation("deleteImage", "Delete a stored image.", deleted) | of_image,
    }


def _listing_paths() -> JsonObject:
    properties = {"object": {"const": "list"}, "data": {"type": "array"}}
    listing = _response("the list", {"type": "object", "properties": properties})
    of_base = {"type": ["string", "null"], "description": "of a LoRA adapter: the id of its base"}
    entry = _response("the entry", {"type": "object", "properties": {"adapter_of": of_base}})
    rows = (
        ("", "listModels", "The served models and their comparison table.", listing),
        ("/{model_id}", "showModel", "One entry of the list of models.", entry),
    )
    paths: JsonObject = {}
    for end, name, summary, response in rows:
        statuses = (*_LISTING_ERRORS, "404") if end else _LISTING_ERRORS
        operation = _operation(name, summary, response, error_statuses=statuses)
        operation["parameters"] = _path_parameters(end) or [_CATALOG]
        paths[f"/v1/models{end}"] = {"get": operation}
    summary = "All tasks with the schemas of their parameters."
    tasks = _operation("listTasks", summary, listing, error_statuses=_LISTING_ERRORS)
    return paths | {"/v1/tasks": {"get": tasks}}


def _batch_paths() -> JsonObject:
    bodies = {
        "/v1/files": {_FORM: _UPLOAD_FORM},
        "/v1/batches": {_JSON: _reference(BatchRequest.__name__)},
    }
    paths: JsonObject = {}
    for (path, method), (summary, answer) in _BATCH_OPERATIONS.items():
        response = _ANY_ANSWER if answer is None else _answer(answer)
        body = bodies.get(path) if method == "post" else None
        parameters = _path_parameters(path)
        for name in _QUERIES.get(answer, ()):
            parameters.append({"name": name, "in": "query", "schema": {"type": "string"}})
        operation = _operation("", summary, response, body, error=ChatError)
        operation |= {"description": _BATCHES, "parameters": parameters}
        paths.setdefault(path, {})[method] = operation
    return paths


def _protocol_paths() -> JsonObject:
    paths: JsonObject = {}
    for prefix, protocol, operations, error in _PROTOCOLS:
        for name, (summary, schema) in operations.items():
            body = None if schema is None else {_JSON: _reference(schema)}
            operation = _operation("", summary, _ANY_ANSWER, body, error=error)
            operation |= {"description": protocol, "parameters": _path_parameters(prefix + name)}
            paths[prefix + name] = {"get" if body is None else "post": operation}
    return paths


def _operation(
    name: str,
    summary: str,
    response: JsonObject,
    body: Mapping[str, JsonObject] | None = None,
    *,
    error: type[BaseModel] = ErrorJson,
    error_statuses: Iterable[str] = _ERRORS,
) -> JsonObject:
    """Return an operation; `body` has the schema of each content type that is read."""
    errors = {
        status: _response(_ERRORS[status], _reference(error.__name__)) for status in error_statuses
    }
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
    fields = PredictFields.model_json_schema()["properties"]
    steps = {"type": "array", "items": _step_schema(models), "minItems": 1, "maxItems": MAX_STEPS}
    analysis = _object({"steps": steps, "stream": fields["stream"]}, ["steps"])
    return {
        **_schemas_of(_ANSWERED, "serialization"),
        **read,
        **_schemas_of(_ANSWERED_ABOUT_IMAGES, "serialization"),
        "analyze": {"oneOf": [_with_image(analysis), _with_images(analysis)]},
        "storeImage": _with_image(_object({}, [])),
        _WEBHOOK: {"type": "object", "maxProperties": MAX_JSON_VALUES},
        _CALL: _with_image(read[Call.__name__]),
        "predict": _request_schema(PredictFields, models),
        "compare": _request_schema(CompareFields, models),
    }


def _schemas_of(models: tuple[type[BaseModel], ...], mode: JsonSchemaMode) -> JsonObject:
    modes = [(model, mode) for model in models]
    _, document = models_json_schema(modes, ref_template=_REF_TEMPLATE)
    schemas: JsonObject = document["$defs"]
    return schemas


def _request_schema(fields_class: type[GenerationFields], models: ServedModels) -> JsonObject:
    """Return two alternatives for each offered task: about one image, and about several."""
    common = fields_class.model_json_schema()["properties"]
    alternatives: list[JsonObject] = []
    for task_id in _offered(models):
        task = TASKS[task_id]
        parameters: JsonObject = task.json_schema()
        fields = {
            **parameters,
            "title": task.id,
            "description": task.description,
            "properties": {**common, "task": {"const": task.id}, **parameters["properties"]},
            "required": ["task", *parameters["required"]],
        }
        alternatives += [_with_image(fields), _with_images(fields)]
    return {"oneOf": alternatives}


def _step_schema(models: ServedModels) -> JsonObject:
    """Return the fields of a step of any task; those of its task are in `predict`."""
    properties: JsonObject = {
        **StepFields.model_json_schema()["properties"],
        **CompareFields.model_json_schema()["properties"],
        **PredictFields.model_json_schema()["properties"],
        "task": {"enum": _offered(models)},
    }
    del properties["stream"]
    for parameter in chain(*(task.parameters for task in TASKS.values())):
        schema: JsonObject = dict(parameter.json_schema())
        known = properties.get(parameter.name, {}).get("enum")
        if known is not None:  # `detail` has other values for each task
            schema = {"type": "string", "enum": list(dict.fromkeys([*known, *schema["enum"]]))}
        properties[parameter.name] = schema
    return _object(properties, ["id", "task"])


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


def _with_image(fields: JsonObject) -> JsonObject:
    properties = {"image": _IMAGE, **fields["properties"]}
    return {**fields, "properties": properties, "required": ["image", *fields["required"]]}


def _with_images(fields: JsonObject) -> JsonObject:
    """Return the schema of a body of several images and `fields`, which is not streamed."""
    properties = {"images": _IMAGES, **fields["properties"]}
    properties.pop("stream", None)
    return {**fields, "properties": properties, "required": ["images", *fields["required"]]}
