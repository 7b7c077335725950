"""The OpenAPI document, generated from the task table and from the models of requests and answers.

The protocols of Open Inference, Label Studio and X-AnyLabeling are specified by their own
documents, which their operations name; only the fields read here are described, with their bounds.
"""

from collections.abc import Mapping
from itertools import chain

from service import VERSION
from service.batches.uploads import MAX_FILE_BYTES, MAX_FORM_BYTES
from service.batches.wire import Batch, BatchList, BatchRequest, FileDeleted, FileList, FileObject
from service.inference.request_fields import CompareFields, GenerationFields, PredictFields
from service.inference.served_models import ServedModels
from service.label_studio.api import MAX_JSON_VALUES, PredictBody, SetupBody
from service.label_studio.api import PREFIX as LABEL_STUDIO_PREFIX
from service.open_inference.http_bodies import InferJson, OpenInferenceError
from service.openai.wire import ChatCompletion, ChatError, ChatRequest
from service.schema.wire import AnswerJson, ComparisonJson, ErrorJson
from service.web.openapi_analysis import analysis_paths, analysis_schemas
from service.web.openapi_parts import (
    ERROR_STATUSES,
    JsonObject,
    body_of,
    error_responses,
    foreign_operation,
    json_content,
    operation_of,
    response_of,
    schemas_of,
    with_image,
    with_images,
)
from service.x_anylabeling.api import PREFIX as X_ANYLABELING_PREFIX
from service.x_anylabeling.asks import Call
from tasks.table import TASKS

_OPEN_INFERENCE = (
    "Open Inference Protocol v2, https://github.com/kserve/open-inference-protocol, with binary"
    " tensor data."
)
_INFER = "Answer with one model: inputs are the fields of /v1/predict, `result` is its body."
# path: summary, schema of the body that is posted
Operations = Mapping[str, tuple[str, str | None]]
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
_LABEL_STUDIO = (
    "Label Studio's ML backend protocol, https://labelstud.io/guide/ml_create, for all models or"
    " the one of the path."
)
_V2_ERROR = OpenInferenceError.__name__
_WEBHOOK = "LabelStudioEvent"
_FAILED_PATHS: Operations = {"/failed/{status}": ("Repeat the error of a failed call.", None)}
_CALL = "XAnyLabelingCall"
_LABEL_STUDIO_PATHS: Operations = {
    "/health": ("Readiness of the models.", None),
    "/versions": ("Versions of the models, as their predictions name them.", None),
    "/setup": ("Check a labelling configuration.", SetupBody.__name__),
    "/predict": ("Predict tasks, or answer a prompt.", PredictBody.__name__),
    "/webhook": ("Accept an event, which changes nothing.", _WEBHOOK),
}
_BATCHES = "OpenAI's Files and Batches, https://platform.openai.com/docs/api-reference/batch."
_X_ANYLABELING = (
    "X-AnyLabeling's remote server protocol, https://github.com/CVHub520/X-AnyLabeling-Server."
)
_X_ANYLABELING_PATHS: Operations = {
    "/health": ("Return the number of served models.", None),
    "/v1/models": ("List the models with their tasks and the inputs of each.", None),
    "/v1/models/{model}/info": ("Describe a model.", None),
    "/v1/predict": ("Return the shapes or the description of an image.", _CALL),
}
_BATCH_OPERATIONS = {  # path and method: summary, answer
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

_LIST_QUERIES = {
    "/v1/files": ("limit", "after", "order", "purpose"),
    "/v1/batches": ("limit", "after"),
}

_CATALOG = {
    "name": "catalog",
    "in": "query",
    "description": "true: also the catalog's models not served, each with its `serve_command`.",
    "schema": {"type": "boolean", "default": False},
}

_ANSWERS = (
    *(AnswerJson, ComparisonJson, ErrorJson),
    *(ChatCompletion, ChatError, OpenInferenceError),
    *(FileObject, FileList, FileDeleted, Batch, BatchList),
)


def openapi_document(models: ServedModels) -> JsonObject:
    """Return the document for the served models."""
    read = schemas_of(
        (ChatRequest, BatchRequest, InferJson, SetupBody, PredictBody, Call), "validation"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Diptych",
            "version": VERSION,
            "description": "Florence-2 and PaliGemma behind one typed task API, side by side.",
        },
        "paths": {
            "/v1/predict": {
                "post": operation_of(
                    "predict", "Answer with one model.", "AnswerJson", "SeveralJson"
                )
            },
            "/v1/compare": {
                "post": operation_of(
                    "compare",
                    "Answer with several models concurrently.",
                    "ComparisonJson",
                    "SeveralJson",
                )
            },
            **analysis_paths(),
            "/v1/chat/completions": {
                "post": {
                    "operationId": "createChatCompletion",
                    "summary": "Answer a chat message of one image and one text, as OpenAI does.",
                    "requestBody": body_of("ChatRequest"),
                    "responses": {
                        "200": response_of("the answer", "ChatCompletion"),
                        **error_responses("ChatError"),
                    },
                }
            },
            "/v1/models": {
                "get": {
                    **_listing("listModels", "The served models and their comparison table."),
                    "parameters": [_CATALOG],
                }
            },
            "/v1/models/{model_id}": {"get": _model_operation()},
            "/v1/tasks": {
                "get": _listing("listTasks", "All tasks with the schemas of their parameters.")
            },
            **_batch_paths(),
            **_tool_paths("/v2", _OPEN_INFERENCE, _SERVER_PATHS, _V2_ERROR),
            **_tool_paths("/v2/models/{model}", _OPEN_INFERENCE, _MODEL_PATHS, _V2_ERROR),
            **_tool_paths(
                "/v2/models/{model}/versions/{version}", _OPEN_INFERENCE, _MODEL_PATHS, _V2_ERROR
            ),
            **_tool_paths(LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _FAILED_PATHS),
            **_tool_paths(LABEL_STUDIO_PREFIX, _LABEL_STUDIO, _LABEL_STUDIO_PATHS),
            **_tool_paths(f"{LABEL_STUDIO_PREFIX}/{{model}}", _LABEL_STUDIO, _LABEL_STUDIO_PATHS),
            **_tool_paths(X_ANYLABELING_PREFIX, _X_ANYLABELING, _X_ANYLABELING_PATHS),
        },
        "components": {
            "schemas": {
                **schemas_of(_ANSWERS, "serialization"),
                **read,
                **analysis_schemas(models),
                _WEBHOOK: {"type": "object", "maxProperties": MAX_JSON_VALUES},
                _CALL: with_image(read[Call.__name__]),
                "predict": _request_schema(PredictFields, models),
                "compare": _request_schema(CompareFields, models),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _batch_paths() -> JsonObject:
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary", "maxLength": MAX_FILE_BYTES},
            "purpose": {"const": "batch"},
        },
        "additionalProperties": {"type": "string"},  # expires_after[…]
        "maxProperties": MAX_FORM_BYTES,  # a limit in bytes also bounds the number
    }
    bodies = {
        "/v1/files": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "/v1/batches": body_of(BatchRequest.__name__),
    }
    paths: JsonObject = {}
    for (path, method), (summary, answer) in _BATCH_OPERATIONS.items():
        operation = foreign_operation(path, summary, _BATCHES, ChatError.__name__)
        if method == "get":
            operation["parameters"] += [
                {"name": name, "in": "query", "schema": {"type": "string"}}
                for name in _LIST_QUERIES.get(path, ())
            ]
        if answer is not None:
            operation["responses"]["200"] = response_of("the answer", answer.__name__)
        body = {"requestBody": bodies[path]} if method == "post" and path in bodies else {}
        paths.setdefault(path, {})[method] = operation | body
    return paths


def _model_operation() -> JsonObject:
    parameter = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
    of_base = {"type": ["string", "null"], "description": "of a LoRA adapter: the id of its base"}
    found = {
        "description": "the entry",
        **json_content({"type": "object", "properties": {"adapter_of": of_base}}),
    }
    missing = {"404": response_of(ERROR_STATUSES["404"], "ErrorJson")}
    listing = _listing("showModel", "One entry of the list of models.")
    return {
        **listing,
        "parameters": [parameter],
        "responses": {**listing["responses"], "200": found, **missing},
    }


def _listing(name: str, summary: str) -> JsonObject:
    schema = {
        "type": "object",
        "properties": {"object": {"const": "list"}, "data": {"type": "array"}},
    }
    response = {"description": "the list", **json_content(schema)}
    errors = {
        status: response_of(ERROR_STATUSES[status], "ErrorJson") for status in ("400", "401", "503")
    }
    return {"operationId": name, "summary": summary, "responses": {"200": response, **errors}}


def _tool_paths(
    prefix: str, description: str, operations: Operations, error: str = ErrorJson.__name__
) -> JsonObject:
    paths: JsonObject = {}
    for name, (summary, schema) in operations.items():
        path = prefix + name
        operation = foreign_operation(path, summary, description, error)
        if schema is None:
            paths[path] = {"get": operation}
        else:
            paths[path] = {"post": operation | {"requestBody": body_of(schema)}}
    return paths


def _request_schema(fields_class: type[GenerationFields], models: ServedModels) -> JsonObject:
    """Return two alternatives for each offered task: about one image, and about several."""
    offered = set(chain(*(model.entry.task_ids for model in models)))
    common = fields_class.model_json_schema()["properties"]
    alternatives: list[JsonObject] = []
    for task in (each for each in TASKS.values() if each.id in offered):
        parameters: JsonObject = task.json_schema()
        fields = {
            **parameters,
            "title": task.id,
            "description": task.description,
            "properties": {**common, "task": {"const": task.id}, **parameters["properties"]},
            "required": ["task", *parameters["required"]],
        }
        alternatives += [with_image(fields), with_images(fields)]
    return {"oneOf": alternatives}
