"""REST over httpx: the request and the response of an attempt, for both kinds of clients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from diptych_client.errors import (
    ErrorDetail,
    connection_failed,
    error_from,
    new_error,
    parse_retry_after_s,
)
from diptych_client.transports.messages import MALFORMED, Call, form_values, from_json, parsed

ResultT = TypeVar("ResultT")

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
