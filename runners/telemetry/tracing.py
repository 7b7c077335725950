"""Traces by OpenTelemetry, in every process: of a request its trace id, and spans where there is a collector for them.

Before `start`, and without a collector, there are no spans, and each function here takes a microsecond or less. What is
current follows a request into the tasks that it starts (OpenTelemetry's context); between processes it travels in the
headers of calls, as W3C Trace Context has it.

Never in a span: images, prompts, answers, keys, nor messages of exceptions, which may quote them.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach, get_current
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
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
    """Where spans go."""

    endpoint: str | None = None  # an OTLP/HTTP collector's URL; None: there are no spans
    sample: float = 1.0  # of the traces that begin here; a caller's decision is kept


def start(options: TraceOptions, part: str) -> None:
    """Send the spans of this process, which is `part` of the service, to the collector. It starts a thread."""
    global _provider, _tracer
    if options.endpoint is not None:
        from runners.telemetry.span_export import make_provider  # what nobody asked for is not loaded

        _provider = make_provider(options.endpoint, options.sample, part)
        _tracer = _provider.get_tracer("diptych")


def stop() -> None:
    """Send the spans that are left, for two seconds at most, and make no more."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
        _provider = _tracer = None


def are_made() -> bool:
    """Say whether there are spans in this process."""
    return _tracer is not None


@contextmanager
def span(
    name: str, attributes: Attributes | None = None, kind: SpanKind = SpanKind.INTERNAL, parent: Context | None = None
) -> Iterator[Span]:
    """Make what is done meanwhile a span, in the current one or in that of `parent`."""
    if _tracer is None:
        yield INVALID_SPAN
        return
    made, before = _tracer.start_span(name, parent, kind, attributes), get_current()
    attach(set_span_in_context(made, parent))
    try:
        yield made
    except Exception as error:  # what is cancelled has not failed
        note_error(made, type(error).__name__)
        raise
    finally:
        attach(before)  # and not detach, which fails where a stream that was given up is closed by another task
        made.end()


def past_span(
    name: str, start_s: float, end_s: float, attributes: Attributes | None = None, parent: Context | None = None
) -> None:
    """Make a span of what was done from `start_s` to `end_s`, on the clock of time.monotonic()."""
    if _tracer is not None:
        begun_ns = time.time_ns() - time.monotonic_ns()
        made = _tracer.start_span(name, parent, attributes=attributes, start_time=begun_ns + round(start_s * 1e9))
        made.end(begun_ns + round(end_s * 1e9))


def note_error(failed: Span, error_type: str) -> None:
    """Mark a span as failed."""
    failed.set_attribute(ERROR_TYPE, error_type)
    failed.set_status(StatusCode.ERROR)


def trace_id() -> str:
    """Return the id of the current trace, 32 hexadecimal digits; outside of any they are 0."""
    return format_trace_id(get_current_span().get_span_context().trace_id)


def caller_context(headers: Mapping[str, str]) -> Context:
    """Return the context that a caller sent; an empty one, where it sent none or a broken one."""
    return _PROPAGATOR.extract(headers)


def call_headers() -> dict[str, str]:
    """Return the headers of a call whose spans are to be children of the current one."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        _PROPAGATOR.inject(headers)
    return headers
