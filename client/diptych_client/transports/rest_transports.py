"""REST over httpx, synchronous and for asyncio: one attempt of a call, to a result or a
`DiptychError`.
"""

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, TypeVar

import httpx
from httpx_sse import EventSource

from diptych_client.errors import DiptychError, connection_failed, deadline_exceeded
from diptych_client.results import Answer
from diptych_client.transports.operations import Attempt, check_stream_is_complete, parsed
from diptych_client.transports.rest_messages import error_from_response, event_from_sse, form_values

ResultT = TypeVar("ResultT")


class RestTransport:
    """A pool of connections."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.Client(base_url=url, headers=_key_headers(api_key))

    def send(self, attempt: Attempt[ResultT]) -> ResultT:
        try:
            response = self._http.send(_http_request(self._http, attempt))
        except httpx.RequestError as error:
            raise _request_error(error, attempt) from error
        return _result(response, attempt)

    def stream(self, attempt: Attempt[Answer]) -> Generator[str | Answer, None, None]:
        """Yield pieces of the raw text, then the answer."""
        request = _http_request(self._http, attempt, is_stream=True)
        event = None
        try:
            with closing(self._http.send(request, stream=True)) as response:
                if not response.is_success:
                    response.read()
                    raise _response_error(response, attempt)
                for sse in EventSource(response).iter_sse():
                    event = parsed(event_from_sse, sse, attempt)
                    yield event
        except httpx.RequestError as error:
            raise _request_error(error, attempt) from error
        check_stream_is_complete(event, attempt)

    def close(self) -> None:
        self._http.close()


class AsyncRestTransport:
    """A pool of connections of one event loop."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_key_headers(api_key))

    async def send(self, attempt: Attempt[ResultT]) -> ResultT:
        try:
            response = await self._http.send(_http_request(self._http, attempt))
        except httpx.RequestError as error:
            raise _request_error(error, attempt) from error
        return _result(response, attempt)

    async def stream(self, attempt: Attempt[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield pieces of the raw text, then the answer."""
        request = _http_request(self._http, attempt, is_stream=True)
        event = None
        try:
            async with aclosing(await self._http.send(request, stream=True)) as response:
                if not response.is_success:
                    await response.aread()
                    raise _response_error(response, attempt)
                async with aclosing(EventSource(response).aiter_sse()) as events:
                    async for sse in events:
                        event = parsed(event_from_sse, sse, attempt)
                        yield event
        except httpx.RequestError as error:
            raise _request_error(error, attempt) from error
        check_stream_is_complete(event, attempt)

    async def close(self) -> None:
        await self._http.aclose()


def _key_headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _http_request(
    http: httpx.Client | httpx.AsyncClient, attempt: Attempt[Any], is_stream: bool = False
) -> httpx.Request:
    path = attempt.operation.path
    request = attempt.request
    headers = {
        "X-Request-Id": attempt.request_id,
        "X-Deadline-Ms": str(max(1, math.floor(attempt.timeout_s * 1000))),
    }
    if request.image is None:
        return http.build_request("GET", path, headers=headers, timeout=attempt.timeout_s)
    form = form_values(request.fields) | ({"stream": "true"} if is_stream else {})
    # a field, or a file
    files = {"image": (None, request.image) if isinstance(request.image, str) else request.image}
    return http.build_request(
        "POST", path, data=form, files=files, headers=headers, timeout=attempt.timeout_s
    )


def _request_error(error: httpx.RequestError, attempt: Attempt[Any]) -> DiptychError:
    if isinstance(error, httpx.TimeoutException):
        return deadline_exceeded(attempt.timeout_s, attempt.request_id)
    return connection_failed(str(error), attempt.request_id)


def _response_error(response: httpx.Response, attempt: Attempt[Any]) -> DiptychError:
    return error_from_response(
        response.status_code, response.headers, response.content, attempt.request_id
    )


def _result(response: httpx.Response, attempt: Attempt[ResultT]) -> ResultT:
    if not response.is_success:
        raise _response_error(response, attempt)
    return parsed(lambda body: attempt.operation.from_json(body.json()), response, attempt)
