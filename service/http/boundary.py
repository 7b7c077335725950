"""The boundary around every HTTP endpoint: request id, deadline, API key, and errors as responses.

An interface (the service's own, OpenAI's, Label Studio's) has a label and a form of its error
bodies; the statuses are the same for all. Streams are server-sent events (WHATWG HTML): a failure
before the first event is an ordinary error response.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.admission.addresses import client_address, parse_networks
from service.admission.api_keys import UNLIMITED, ApiKeys, Quota
from service.admission.places import RequestContext, request_id_or_new
from service.admission.threads import current_client
from service.analysis import Analysis, StepAnswer
from service.errors import DeadlineExceeded, ErrorCode, InvalidRequest, NotReady, ServiceError
from service.http.body import BodyMemory
from service.inference.core import Core
from service.inference.prediction import Answer, Piece
from service.inference.recording import record_failure, record_gone_client
from service.schema.rendering import ErrorJson, error_detail
from service.settings import Settings
from tasks.errors import shown
from wire.disconnection import while_connected

STATUSES: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "not_found": 404,
    "image_expired": 410,
    "image_too_large": 413,
    "payload_too_large": 413,
    "unsupported_image": 415,
    "unsupported_task": 422,
    "overloaded": 429,
    "internal": 500,
    "not_ready": 503,
    "runner_failed": 503,
    "deadline_exceeded": 504,
}
_CLIENT_CLOSED_REQUEST = 499  # nginx's code; for access logs only, as the client has disconnected

# Bodies other than responses are sent as JSON
Body = Response | BaseModel | Mapping[str, Any]
Endpoint = Callable[[Request, RequestContext], Awaitable[Body]]
BodyT = TypeVar("BodyT")
Reader = Callable[[Request, BodyMemory], Awaitable[BodyT]]
ErrorForm = Callable[[ServiceError, str], Mapping[str, Any]]


def error_json(error: ServiceError, request_id: str) -> dict[str, Any]:
    return ErrorJson(error=error_detail(error, request_id)).model_dump()


def authorization(request: Request) -> str | None:
    """Return the header; a repeated one is a list (RFC 9110, 5.3), which matches no key."""
    return ", ".join(request.headers.getlist("authorization")) or None


@dataclass(frozen=True, slots=True)
class Interface:
    """An HTTP interface."""

    api: str  # its label in metrics
    prefix: str = ""  # its paths begin with it
    error_form: ErrorForm = error_json
    authorization: Callable[[Request], str | None] = authorization  # `Bearer KEY`
    respond: Callable[[Request, Response], Response] | None = None  # changes responses


REST = Interface("rest")


class RestBoundary:
    """Wraps endpoints, and gives them the core once `start` was called."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._proxies = parse_networks(settings.trusted_proxies)
        self._core: Core | None = None
        self._api_keys = ApiKeys(None)

    def start(self, core: Core, api_keys: ApiKeys) -> None:
        """Answer from `core` from now on; until then every endpoint answers not_ready."""
        self._core = core
        self._api_keys = api_keys

    def route(
        self,
        method: str,
        path: str,
        function: Endpoint,
        interface: Interface = REST,
        *,
        is_public: bool = False,
    ) -> Route:
        """Return a route to `function`; without an accepted key only if `is_public`."""

        async def answer(request: Request) -> Response:
            # a body may replace it
            request.state.request_id = request_id_or_new(request.headers.get("x-request-id"))
            core = self._core
            try:
                if core is not None:
                    core.places.check_open()
                limit_s = self.settings.request_timeout_s
                header = request.headers.get("x-deadline-ms")
                timeout_s = limit_s if header is None else min(limit_s, _timeout_s(header))
                deadline_s = time.monotonic() + timeout_s
                quota = UNLIMITED if is_public else self._checked_quota(request, interface)
                quota.take_request()
                current_client.set(quota.name)
                context = RequestContext(request.state.request_id, interface.api, deadline_s, quota)
                response = None
                try:
                    response = _response(await function(request, context))
                finally:  # the place of a stream lasts as long as its events
                    if core is not None and not isinstance(response, StreamingResponse):
                        core.places.leave(context)
            except ClientDisconnect:
                record_gone_client(interface.api, request.state.request_id)
                return Response(status_code=_CLIENT_CLOSED_REQUEST)
            except Exception as error:
                response = error_response(error, request.state.request_id, interface)
            response.headers["X-Request-Id"] = request.state.request_id
            if core is not None and core.places.is_closed:
                response.headers["Connection"] = "close"
            return interface.respond(request, response) if interface.respond else response

        return Route(interface.prefix + path, answer, methods=[method])

    def core(self) -> Core:
        if self._core is None:
            raise NotReady("the service is starting; try again in a few seconds")
        return self._core

    def is_authorized(self, request: Request, interface: Interface) -> bool:
        try:
            self._checked_quota(request, interface)
        except ServiceError:
            return False
        return True

    def refusal(self, request: Request) -> Response | None:
        try:
            self._checked_quota(request, REST)
        except ServiceError as error:
            request_id = request_id_or_new(request.headers.get("x-request-id"))
            return error_response(error, request_id, REST)
        return None

    async def read(self, reader: Reader[BodyT], request: Request, context: RequestContext) -> BodyT:
        """Return the body, read in a place of its client; raise `Overloaded` before reading."""
        core = self.core()
        core.places.take(context)
        memory = BodyMemory(self.settings.max_body_bytes, partial(core.places.hold, context))
        try:
            async with asyncio.timeout(context.deadline_s - time.monotonic()):
                return await reader(request, memory)
        except TimeoutError as error:
            message = "the request's body was not received before the deadline"
            raise DeadlineExceeded(message) from error

    def _checked_quota(self, request: Request, interface: Interface) -> Quota:
        peer = request.client.host if request.client else ""
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        address = client_address(peer, forwarded, self._proxies)
        return self._api_keys.check(interface.authorization(request), address)


def _timeout_s(header: str) -> float:
    if not (header.isascii() and header.isdigit() and len(header) <= 15) or int(header) == 0:
        raise InvalidRequest(
            f"X-Deadline-Ms must be a whole number of milliseconds above 0, not {shown(header)}"
        )
    return int(header) / 1000


def _response(body: Body) -> Response:
    if isinstance(body, Response):
        return body
    if isinstance(body, BaseModel):
        return Response(body.model_dump_json(), media_type="application/json")
    return JSONResponse(body)


def error_response(
    error: Exception, request_id: str, interface: Interface, status: int | None = None
) -> Response:
    failure = record_failure(error, interface.api, request_id)
    return failure_response(failure, request_id, interface, status)


def failure_response(
    failure: ServiceError, request_id: str, interface: Interface, status: int | None = None
) -> Response:
    headers = {"X-Request-Id": request_id}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(failure.retry_after_s)
    if failure.code == "unauthorized":
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        interface.error_form(failure, request_id), status or STATUSES[failure.code], headers
    )


# the latter: nginx does not buffer
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

EventT = TypeVar("EventT", Piece | Answer, StepAnswer | Analysis)
# The result of `Core.stream` or `stream_analysis`
Events = AsyncGenerator[EventT, None]
Form = Callable[[EventT], Iterable[str]]


def server_sent_event(data: str, name: str | None = None) -> str:
    return f"data: {data}\n\n" if name is None else f"event: {name}\ndata: {data}\n\n"


class _ClosingResponse(StreamingResponse):
    """Closes its body when the client disconnects, also during a send: Starlette 1.10 does not."""

    def __init__(self, body: AsyncGenerator[str, None]) -> None:
        super().__init__(body, headers=_HEADERS, media_type="text/event-stream")
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._body):
            await super().__call__(scope, receive, send)


async def event_stream(
    request: Request,
    context: RequestContext,
    interface: Interface,
    events: Events[EventT],
    form: Form[EventT],
) -> Response:
    """Return the response that sends each of `events` as it arrives; a disconnect closes them."""
    first = await while_connected(request.receive, anext(events))

    async def body() -> AsyncGenerator[str, None]:
        is_ended = False
        event: EventT | None = first
        try:
            async with aclosing(events):
                while event is not None:
                    is_ended = isinstance(event, Answer | Analysis)
                    for text in form(event):
                        yield text
                    event = await anext(events, None)
        except Exception as error:
            is_ended = True
            failure = record_failure(error, interface.api, context.request_id)
            document = interface.error_form(failure, context.request_id)
            yield server_sent_event(json.dumps(document), "error")
        finally:
            if not is_ended:
                record_gone_client(interface.api, context.request_id)

    return _ClosingResponse(body())
