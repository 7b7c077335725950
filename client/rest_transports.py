"""REST over httpx, with and without asyncio: one try of a call to a result or a `DiptychError`."""

import math
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any

import httpx

from client.errors import DiptychError, ErrorDetail, InternalError, connection_failed, deadline_exceeded
from client.operations import Attempt, ResultT
from client.rest_messages import error_from_response, form_of
from client.results import Answer
from client.server_sent_events import EventReader


class RestTransport:
    """A pool of connections."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.Client(base_url=url, headers=_key_headers(api_key))

    def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        try:
            response = self._http.send(_http_request(self._http, attempt))
        except httpx.RequestError as error:
            raise _transport_error(error, attempt) from error
        return _result(response, attempt)

    def stream(self, attempt: Attempt[Answer]) -> Generator[str | Answer, None, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        reader = EventReader(attempt.request_id)
        try:
            with closing(
                self._http.send(_http_request(self._http, attempt, is_streamed=True), stream=True)
            ) as response:
                if not response.is_success:
                    response.read()
                    raise _response_error(response, attempt)
                for chunk in response.iter_bytes():
                    yield from reader.read(chunk)
        except httpx.RequestError as error:
            raise _transport_error(error, attempt) from error
        reader.end()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncRestTransport:
    """A pool of connections of one event loop."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_key_headers(api_key))

    async def send(self, attempt: Attempt[ResultT]) -> ResultT:
        """Return what the service answers; raise `DiptychError`."""
        try:
            response = await self._http.send(_http_request(self._http, attempt))
        except httpx.RequestError as error:
            raise _transport_error(error, attempt) from error
        return _result(response, attempt)

    async def stream(self, attempt: Attempt[Answer]) -> AsyncGenerator[str | Answer, None]:
        """Yield the text as it is written, then the answer; raise `DiptychError`."""
        reader = EventReader(attempt.request_id)
        try:
            response = await self._http.send(_http_request(self._http, attempt, is_streamed=True), stream=True)
            async with aclosing(response):
                if not response.is_success:
                    await response.aread()
                    raise _response_error(response, attempt)
                async for chunk in response.aiter_bytes():
                    for event in reader.read(chunk):
                        yield event
        except httpx.RequestError as error:
            raise _transport_error(error, attempt) from error
        reader.end()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


def _key_headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _http_request(
    http: httpx.Client | httpx.AsyncClient, attempt: Attempt[Any], is_streamed: bool = False
) -> httpx.Request:
    path, request = attempt.operation.path, attempt.request
    headers = {"X-Request-Id": attempt.request_id, "X-Deadline-Ms": str(max(1, math.floor(attempt.timeout_s * 1000)))}
    if request.image is None:
        return http.build_request("GET", path, headers=headers, timeout=attempt.timeout_s)
    form, files = form_of(request.fields) | ({"stream": "true"} if is_streamed else {}), {"image": request.image}
    return http.build_request("POST", path, data=form, files=files, headers=headers, timeout=attempt.timeout_s)


def _transport_error(error: httpx.RequestError, attempt: Attempt[Any]) -> DiptychError:
    if isinstance(error, httpx.TimeoutException):
        return deadline_exceeded(attempt.timeout_s, attempt.request_id)
    return connection_failed(str(error), attempt.request_id)


def _response_error(response: httpx.Response, attempt: Attempt[Any]) -> DiptychError:
    return error_from_response(response.status_code, response.headers, response.content, attempt.request_id)


def _result(response: httpx.Response, attempt: Attempt[ResultT]) -> ResultT:
    if not response.is_success:
        raise _response_error(response, attempt)
    try:
        return attempt.operation.from_json(response.json())
    except (ValueError, KeyError, TypeError) as error:
        message = f"the answer of {response.url} cannot be read: {error!r}"
        raise InternalError(ErrorDetail("internal", message, None, attempt.request_id)) from error
