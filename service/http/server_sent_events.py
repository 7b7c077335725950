"""Streaming responses as server-sent events.

A failure before the first event is an ordinary error response.

Format: WHATWG HTML, "Server-sent events".
"""

import json
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.admission.places import RequestContext
from service.analysis.execution import Analysis, StepAnswer
from service.http.boundary import Interface
from service.inference.prediction import Answer, Piece
from service.inference.recording import record_failure, record_gone_client
from wire.disconnection import while_connected

# the latter: nginx does not buffer
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

EventT = TypeVar("EventT", Piece | Answer, StepAnswer | Analysis)
# The result of `Core.stream` or `stream_analysis`
Events = AsyncGenerator[EventT, None]
Form = Callable[[EventT], Iterable[str]]


def server_sent_event(data: str, name: str | None = None) -> str:
    """Return one event; `data` is one line."""
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
    """Return the response that sends each of `events`, rendered by `form`, as it arrives.

    A disconnect closes `events`. An error after the first event is sent as an event `error`.
    """
    first = await while_connected(request.receive, anext(events))
    return _ClosingResponse(_body(first, events, form, context, interface))


async def _body(
    first: EventT,
    events: Events[EventT],
    form: Form[EventT],
    context: RequestContext,
    interface: Interface,
) -> AsyncGenerator[str, None]:
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
        yield server_sent_event(
            json.dumps(interface.error_form(failure, context.request_id)), "error"
        )
    finally:
        if not is_ended:
            record_gone_client(interface.api, context.request_id)
