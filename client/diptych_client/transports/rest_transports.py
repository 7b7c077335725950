"""REST over httpx: the request and the response of an attempt, for both kinds of clients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from diptych_client.errors import connection_failed, new_error
from diptych_client.transports.messages import Call, error_from_response, form_values, parsed

ResultT = TypeVar("ResultT")


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
    return http.build_request(
        _verb(call), call.operation.path, headers=headers, timeout=timeout_s, **content
    )


def _verb(call: Call[Any]) -> str:
    return call.operation.verb if call.request.image is None else "POST"


@contextmanager
def request_errors(call: Call[Any]) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        message = "no response before the deadline"
        raise new_error("deadline_exceeded", message, request_id=call.request_id) from error
    except httpx.RequestError as error:
        tried = f"{_verb(call)} {call.operation.path}"
        raise connection_failed(str(error), call.request_id, call.url, tried) from error


def check_status(response: httpx.Response, call: Call[Any]) -> None:
    if not response.is_success:
        raise error_from_response(
            response.status_code,
            response.headers,
            response.content,
            call.request_id,
            f"{call.url}{call.operation.path}",
        )


def http_result(response: httpx.Response, call: Call[ResultT]) -> ResultT:
    check_status(response, call)
    return parsed(lambda reply: call.operation.parse(reply.json()), response, call)
