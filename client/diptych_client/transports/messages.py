"""REST: the calls of the API, and their attempts over httpx."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from diptych_client.errors import (
    ErrorDetail,
    connection_failed,
    error_from,
    new_error,
    parse_retry_after_s,
)
from diptych_client.json_values import from_json
from diptych_client.requests import FieldValue, Request
from diptych_client.results import Analysis, Answer, Comparison, Model, Task

ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT")
ValueT = TypeVar("ValueT")

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_MIN_TIMEOUT_S = 0.001  # a delay between retries may end late


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """One call of the API over both transports; its response's JSON is parsed for both."""

    verb: str
    path: str
    method: str  # of gRPC
    kind: type[ResultT]
    key: str = ""  # of the result in the response, if it is a part of it

    def parse(self, body: Any) -> ResultT:
        return from_json(self.kind, body[self.key] if self.key else body)


PREDICT = Operation("POST", "/v1/predict", "Predict", Answer)
COMPARE = Operation("POST", "/v1/compare", "Compare", Comparison)
ANALYZE = Operation("POST", "/v1/analyze", "Analyze", Analysis)
STORE = Operation("POST", "/v1/images", "", str, "id")  # over REST alone
MODELS = Operation("GET", "/v1/models", "ListModels", tuple[Model, ...], "data")
TASKS = Operation("GET", "/v1/tasks", "ListTasks", tuple[Task, ...], "data")


def removal(image_id: str) -> Operation[str]:
    return replace(STORE, verb="DELETE", path=f"{STORE.path}/{image_id}")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """A call with the id and the deadline that all its attempts share."""

    operation: Operation[ResultT]
    request: Request
    request_id: str
    deadline_s: float  # time.monotonic()
    url: str = ""  # the service, without credentials

    def remaining_s(self) -> float:
        return max(_MIN_TIMEOUT_S, self.deadline_s - time.monotonic())


def parsed(parse: Callable[[ResponseT], ValueT], response: ResponseT, call: Call[Any]) -> ValueT:
    """Return the parsed response; raise `InternalError` if it violates the API."""
    try:
        return parse(response)
    except MALFORMED as error:
        message = f"cannot parse the response to {call.operation.method}: {error!r}"
        raise new_error("internal", message, request_id=call.request_id) from error


def check_stream_is_complete(last_event: str | Answer | None, call: Call[Answer]) -> None:
    """Raise `ConnectionFailed` if a stream ended without its answer."""
    if not isinstance(last_event, Answer):
        reason = "the stream ended before the answer"
        raise connection_failed(reason, call.request_id, call.url, call.operation.path)


def form_values(request_fields: Mapping[str, FieldValue]) -> dict[str, str]:
    """Return fields as form values: strings unchanged, everything else as JSON."""
    form = {}
    for name, value in request_fields.items():
        form[name] = value if isinstance(value, str) else json.dumps(value)
    return form


def event_from_sse(event: ServerSentEvent) -> str | Answer:
    """Return a piece of raw text or the answer; raise the error of an error event."""
    data = json.loads(event.data)
    match event.event:
        case "token":
            return str(data["text"])
        case "result":
            return from_json(Answer, data)
    raise error_from(from_json(ErrorDetail, data["error"]))


# For responses without our JSON body: those of a proxy, or of the server before the service has
# started.
_CODE_OF_STATUS = {
    400: "invalid_request",
    401: "unauthorized",
    413: "payload_too_large",
    429: "overloaded",
    502: "connection_failed",
    503: "not_ready",
    504: "deadline_exceeded",
}


def key_headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def http_request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], is_stream: bool = False
) -> httpx.Request:
    timeout_s = call.remaining_s()
    deadline_ms = max(1, math.floor(timeout_s * 1000))
    headers = {"X-Request-Id": call.request_id, "X-Deadline-Ms": str(deadline_ms)}
    content: dict[str, Any] = {}
    if (image := call.request.image) is not None:
        content["data"] = form_values(call.request.fields)
        if is_stream:
            content["data"]["stream"] = "true"
        # a field, or a file
        content["files"] = {"image": (None, image) if isinstance(image, str) else image}
    operation = call.operation
    return http.build_request(
        operation.verb, operation.path, headers=headers, timeout=timeout_s, **content
    )


@contextmanager
def request_errors(call: Call[Any]) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        message = "no response before the deadline"
        raise new_error("deadline_exceeded", message, request_id=call.request_id) from error
    except httpx.RequestError as error:
        tried = f"{call.operation.verb} {call.operation.path}"
        raise connection_failed(str(error), call.request_id, call.url, tried) from error


def check_status(response: httpx.Response, call: Call[Any]) -> None:
    """Raise the error of a failed response: from its JSON body, else from status and URL."""
    if response.is_success:
        return
    wait_s = parse_retry_after_s(response.headers.get("retry-after"))
    try:
        detail = from_json(ErrorDetail, response.json()["error"])
    except MALFORMED:
        code = _CODE_OF_STATUS.get(response.status_code, "internal")
        text = response.content[:200].decode(errors="replace")
        url = f"{call.url}{call.operation.path}"
        message = f"{url} responded with status {response.status_code}: {text}"
        detail = ErrorDetail(code, message, None, call.request_id)
    raise error_from(detail, wait_s)


def http_result(response: httpx.Response, call: Call[ResultT]) -> ResultT:
    check_status(response, call)
    return parsed(lambda reply: call.operation.parse(reply.json()), response, call)
