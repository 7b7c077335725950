"""The trace of a request: its caller's, or a new one. Every request has its id, whether or not spans are made.

The id is in the request's log lines and in its answer: `X-Trace-Id` over HTTP, `x-trace-id` in the trailing metadata of
gRPC, errors included.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context, attach, get_current
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import (
    GEN_AI_OPERATION_NAME,
    GEN_AI_PROVIDER_NAME,
    GEN_AI_REQUEST_MODEL,
)
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    get_current_span,
    set_span_in_context,
)

from runners.telemetry.tracing import Attributes, are_made, caller_context, note_error, span
from service.errors import ErrorCode

_OPERATION = "generate_content"
# As over HTTP and gRPC: what a client did wrong is no failure of the service.
_FAULTS: frozenset[str] = frozenset[ErrorCode]({"internal", "not_ready", "deadline_exceeded"})


@contextmanager
def request_trace(headers: Mapping[str, str], name: str, attributes: Attributes | None) -> Iterator[Span]:
    """Be in the trace of a request that has `headers`, and make a span of it; without `attributes` only the former."""
    caller = caller_context(headers)
    if attributes is not None and are_made():
        with span(name, attributes, SpanKind.SERVER, caller) as made:
            yield made
        return
    before = get_current()
    attach(_with_id(caller))
    try:
        yield get_current_span()
    finally:
        attach(before)


@contextmanager
def answer_span(model: str, task: str, request_id: str) -> Iterator[None]:
    """Make what is done meanwhile the span of one model's answer, by the conventions for generative models."""
    attributes = {
        GEN_AI_OPERATION_NAME: _OPERATION,
        GEN_AI_PROVIDER_NAME: "diptych",
        GEN_AI_REQUEST_MODEL: model,
        "diptych.task": task,
        "diptych.request_id": request_id,
    }
    with span(f"{_OPERATION} {model}", attributes):
        yield


def note_status(status: str) -> None:
    """Note on the current span what became of a request: ok, the code of its error, or client_gone."""
    noted = get_current_span()
    noted.set_attribute("diptych.status", status)
    if status in _FAULTS:
        note_error(noted, status)


def _with_id(caller: Context) -> Context:
    """Return the caller's context, with a new trace if it has none."""
    if get_current_span(caller).get_span_context().is_valid:
        return caller
    ids = SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
    return set_span_in_context(NonRecordingSpan(ids), caller)
