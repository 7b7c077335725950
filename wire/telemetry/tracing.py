"""Tracing by OpenTelemetry in gateway and runners: trace ids always, spans with a collector.

Before `start`, and without a collector, no spans are made and each function here takes at most a
microsecond. The current span propagates to asyncio tasks by OpenTelemetry's context, and between
processes by W3C Trace Context headers.

Spans never contain images, prompts, answers, keys, or messages of exceptions, which may quote them.
"""

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach, get_current
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attributes = Mapping[str, str | int | float | tuple[str, ...]]

_PROPAGATOR = TraceContextTextMapPropagator()
_provider: "TracerProvider | None" = None
_tracer: Tracer | None = None


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """The collector, and the share of traces that are sampled."""

    endpoint: str | None = None  # URL of an OTLP/HTTP collector; no spans without it
    # share of the traces that start here, 0 to 1; for others the caller's decision applies
    sample: float = 1.0


def start(options: TraceOptions, part: str) -> None:
    """Start a thread that exports the spans of `part` of the service, if an endpoint is set."""
    global _provider, _tracer
    if options.endpoint is not None:
        from wire.telemetry.span_export import make_provider  # loads the SDK: only if needed

        _provider = make_provider(options.endpoint, options.sample, part)
        _tracer = _provider.get_tracer("diptych")


def stop() -> None:
    """Export the remaining spans, for at most two seconds, and stop making new ones."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
        _provider = _tracer = None


def are_made() -> bool:
    """Return True if this process makes spans."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Context | None = None,
) -> Iterator[Span]:
    """Make a span of the block under `parent` or the current span; an exception fails it."""
    if _tracer is None:
        yield INVALID_SPAN
        return
    made = _tracer.start_span(name, parent, kind, attributes)
    before = get_current()
    attach(set_span_in_context(made, parent))
    try:
        yield made
    except Exception as error:  # a cancellation is not a failure
        note_error(made, type(error).__name__)
        raise
    finally:
        attach(before)  # detach would fail if another task closes an abandoned stream
        made.end()


@contextmanager
def request_trace(
    headers: Mapping[str, str], name: str, attributes: Attributes | None
) -> Iterator[Span]:
    """Enter the trace in `headers`, or a new one; make a span unless `attributes` is None."""
    caller = _PROPAGATOR.extract(headers) if "traceparent" in headers else Context()
    if attributes is not None and _tracer is not None:
        with span(name, attributes, SpanKind.SERVER, caller) as made:
            yield made
        return
    if not get_current_span(caller).get_span_context().is_valid:
        ids = SpanContext(
            random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False
        )
        caller = set_span_in_context(NonRecordingSpan(ids), caller)
    before = get_current()
    attach(caller)
    try:
        yield get_current_span()
    finally:
        attach(before)


def past_span(
    name: str,
    start_s: float,
    end_s: float,
    attributes: Attributes | None = None,
    parent: Context | None = None,
) -> None:
    """Make a span of a past interval, `start_s` to `end_s` on the clock of time.monotonic()."""
    if _tracer is not None:
        epoch_ns = time.time_ns() - time.monotonic_ns()
        made = _tracer.start_span(
            name, parent, attributes=attributes, start_time=epoch_ns + round(start_s * 1e9)
        )
        made.end(epoch_ns + round(end_s * 1e9))


def note_error(failed: Span, error_type: str) -> None:
    """Mark a span as failed. `error_type`: an error code or a class name."""
    failed.set_attribute(ERROR_TYPE, error_type)
    failed.set_status(StatusCode.ERROR)


def trace_id() -> str:
    """Return the id of the current trace, 32 hexadecimal digits, all 0 outside a trace."""
    return format_trace_id(get_current_span().get_span_context().trace_id)


def caller_context(headers: Mapping[str, str]) -> Context:
    """Return the trace context in headers; an empty one if it is missing or malformed."""
    return _PROPAGATOR.extract(headers)


def call_headers() -> dict[str, str]:
    """Return the headers that make the spans of a call children of the current span."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        _PROPAGATOR.inject(headers)
    return headers
