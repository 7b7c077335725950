"""REST over httpx, synchronous and for asyncio: an attempt of a call, to a result or an error."""

import math
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource

from diptych_client.errors import connection_failed, deadline_exceeded
from diptych_client.results import Answer
from diptych_client.transports.messages import (
    Call,
    check_stream_is_complete,
    error_from_response,
    event_from_sse,
    form_values,
    parsed,
)

ResultT = TypeVar("ResultT")


class RestTransport:
    """A pool of connections."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.Client(base_url=url, headers=_key_headers(api_key))

    def send(self, call: Call[ResultT]) -> ResultT:
        with _request_errors(call):
            response = self._http.send(_http_request(self._http, call))
        return _result(response, call)

    def stream(self, call: Call[Answer]) -> Generator[str | Answer, None, None]:
        request = _http_request(self._http, call, is_stream=True)
        event = None
        with _request_errors(call), closing(self._http.send(request, stream=True)) as response:
            if not response.is_success:
                response.read()
                _check_status(response, call)
            for sse in EventSource(response).iter_sse():
                event = parsed(event_from_sse, sse, call)
                yield event
        check_stream_is_complete(event, call)

    def close(self) -> None:
        self._http.close()


class AsyncRestTransport:
    """A pool of connections of one event loop."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_key_headers(api_key))

    async def send(self, call: Call[ResultT]) -> ResultT:
        with _request_errors(call):
            response = await self._http.send(_http_request(self._http, call))
        return _result(response, call)

    async def stream(self, call: Call[Answer]) -> AsyncGenerator[str | Answer, None]:
        request = _http_request(self._http, call, is_stream=True)
        event = None
        with _request_errors(call):
            async with aclosing(await self._http.send(request, stream=True)) as response:
                if not response.is_success:
                    await response.aread()
                    _check_status(response, call)
                async with aclosing(EventSource(response).aiter_sse()) as events:
                    async for sse in events:
                        event = parsed(event_from_sse, sse, call)
                        yield event
        check_stream_is_complete(event, call)

    async def close(self) -> None:
        await self._http.aclose()


def _key_headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _http_request(
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
def _request_errors(call: Call[Any]) -> Iterator[None]:
    timeout_s = call.remaining_s()
    try:
        yield
    except httpx.TimeoutException as error:
        raise deadline_exceeded(timeout_s, call.request_id) from error
    except httpx.RequestError as error:
        tried = f"{_verb(call)} {call.operation.path}"
        raise connection_failed(str(error), call.request_id, call.url, tried) from error


def _check_status(response: httpx.Response, call: Call[Any]) -> None:
    if not response.is_success:
        raise error_from_response(
            response.status_code,
            response.headers,
            response.content,
            call.request_id,
            f"{call.url}{call.operation.path}",
        )


def _result(response: httpx.Response, call: Call[ResultT]) -> ResultT:
    _check_status(response, call)
    return parsed(lambda reply: call.operation.parse(reply.json()), response, call)
