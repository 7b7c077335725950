"""The trace of a request: the caller's, or a new one. Every request has a trace id, with or without spans.

The id is in the log lines and in the response, also of an error: header `X-Trace-Id` over HTTP, trailing metadata
`x-trace-id` over gRPC.
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
# As in the conventions for HTTP and gRPC: a client's error is no failure of the server's span.
_FAULTS: frozenset[str] = frozenset[ErrorCode]({"internal", "not_ready", "deadline_exceeded"})


@contextmanager
def request_trace(headers: Mapping[str, str], name: str, attributes: Attributes | None) -> Iterator[Span]:
    """Enter the trace of a request with `headers`; start its span, unless `attributes` is None."""
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
    """Start the span of one model's answer, with the attributes of OpenTelemetry's conventions for generative AI."""
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
    """Set the outcome of a request on the current span: ok, an error code, or client_gone."""
    current = get_current_span()
    current.set_attribute("diptych.status", status)
    if status in _FAULTS:
        note_error(current, status)


def _with_id(caller: Context) -> Context:
    """Return the caller's context, with a new trace id if it has none."""
    if get_current_span(caller).get_span_context().is_valid:
        return caller
    ids = SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
    return set_span_in_context(NonRecordingSpan(ids), caller)
