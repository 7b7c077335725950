"""The paths of the Open Inference Protocol in the OpenAPI document; bodies are specified where it points."""

from typing import Any

_SOURCE = "Open Inference Protocol v2, https://github.com/kserve/open-inference-protocol, with binary tensor data."
_OF_SERVER = {
    "/v2": "What the server is.",
    "/v2/health/live": "Whether it answers.",
    "/v2/health/ready": "Whether every model answers.",
}
_OF_MODEL = {
    "": "Inputs and output of a model.",
    "/config": "Its configuration, as Triton's load tools ask for it.",
    "/ready": "Whether it answers.",
    "/infer": "Answer with it: inputs have the names of the fields of /v1/predict, the output `result` is its body.",
}

JsonObject = dict[str, Any]


def open_inference_paths(errors: JsonObject) -> JsonObject:
    """Return every path; `errors` are the responses that are no answer."""
    operations = {path: _operation(summary, errors, []) for path, summary in _OF_SERVER.items()}
    for model, names in (("", ["model"]), ("/versions/{version}", ["model", "version"])):
        for path, summary in _OF_MODEL.items():
            operations[f"/v2/models/{{model}}{model}{path}"] = _operation(summary, errors, names)
    return {
        path: {"post": _BODY | operation} if path.endswith("/infer") else {"get": operation}
        for path, operation in operations.items()
    }


def _operation(summary: str, errors: JsonObject, names: list[str]) -> JsonObject:
    return {
        "summary": summary,
        "description": _SOURCE,
        "parameters": [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names],
        "responses": {"200": _content({"type": "object"}) | {"description": "the answer"}, **errors},
    }


def _content(schema: JsonObject) -> JsonObject:
    return {"content": {"application/json": {"schema": schema}}}


_BODY = {"requestBody": _content({"type": "object", "required": ["inputs"]}) | {"required": True}}
