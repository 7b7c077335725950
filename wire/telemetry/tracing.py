"""Tracing by OpenTelemetry in gateway and runners: trace ids always, spans with a collector.

Without a collector no spans are made, and each function here takes at most a microsecond. The
current span propagates to asyncio tasks by OpenTelemetry's context, and between processes by W3C
Trace Context headers. Spans go to a collector over OTLP/HTTP, in batches, by a thread; those that
cannot be sent are dropped. Spans never contain images, prompts, answers, keys, or messages of
exceptions, which may quote them.
"""

import logging
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from opentelemetry import trace as otel
from opentelemetry.context import Context, attach, get_current
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attributes = Mapping[str, str | int | float | tuple[str, ...]]

EXPORT_LOGGERS = (  # opentelemetry-sdk and its exporter, 1.45.1: failed batches, full queue
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)
_FLUSH_MS = 2000
PROPAGATOR = TraceContextTextMapPropagator()
_tracer: otel.Tracer | None = None
_stop_exporting: Callable[[], object] | None = None


def once_per(
    interval_s: float, now: Callable[[], float] = time.monotonic
) -> Callable[[object], bool]:
    """Return a filter of a log: an unreachable collector fails many batches in a row."""
    last_s = -math.inf

    def is_due(_record: object) -> bool:
        nonlocal last_s
        if now() - last_s < interval_s:
            return False
        last_s = now()
        return True

    return is_due


def start(otlp_endpoint: str | None, part: str) -> None:
    """Start a thread that exports the spans of `part` of the service, if an endpoint is set.

    The SDK samples as OpenTelemetry's variable OTEL_TRACES_SAMPLER says, by default all traces
    that start here; for others the caller's decision applies.
    """
    global _tracer, _stop_exporting
    if otlp_endpoint is None:
        return
    # the SDK: loaded only if needed
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    rate_limit = once_per(60.0)
    for name in EXPORT_LOGGERS:
        logging.getLogger(name).addFilter(rate_limit)
    attributes: dict[str, str | int] = {
        "service.namespace": "diptych",
        "service.name": part,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    spans = BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint.rstrip("/") + "/v1/traces"))
    provider.add_span_processor(spans)
    _tracer = provider.get_tracer("diptych")
    # the library's own shutdown takes up to 30 s, with retries
    _stop_exporting = partial(spans._batch_processor.shutdown, _FLUSH_MS)


def stop() -> None:
    """Export the remaining spans, for at most two seconds, and stop making new ones."""
    global _tracer, _stop_exporting
    if _stop_exporting is not None:
        _stop_exporting()
        _tracer = _stop_exporting = None


def are_made() -> bool:
    return _tracer is not None


@contextmanager
def span(
    name: str,
    attributes: Attributes | None = None,
    kind: otel.SpanKind = otel.SpanKind.INTERNAL,
    parent: Context | None = None,
) -> Iterator[otel.Span]:
    """Make a span of the block under `parent` or the current span; an exception fails it."""
    if _tracer is None:
        yield otel.INVALID_SPAN
        return
    new_span = _tracer.start_span(name, parent, kind, attributes)
    try:
        before = get_current()
        attach(otel.set_span_in_context(new_span, parent))
        try:
            yield new_span
        finally:
            attach(before)  # detach would fail if another task closes an abandoned stream
    except Exception as error:  # a cancellation is not a failure
        note_error(new_span, type(error).__name__)
        raise
    finally:
        new_span.end()


@contextmanager
def request_trace(
    headers: Mapping[str, str], name: str, attributes: Attributes | None
) -> Iterator[otel.Span]:
    """Enter the trace in `headers`, or a new one; make a span unless `attributes` is None."""
    caller = PROPAGATOR.extract(headers) if "traceparent" in headers else Context()
    if attributes is not None and _tracer is not None:
        with span(name, attributes, otel.SpanKind.SERVER, caller) as new_span:
            yield new_span
        return
    if not otel.get_current_span(caller).get_span_context().is_valid:
        trace = random.getrandbits(128) or 1
        ids = otel.SpanContext(trace, random.getrandbits(64) or 1, is_remote=False)
        caller = otel.set_span_in_context(otel.NonRecordingSpan(ids), caller)
    before = get_current()
    attach(caller)
    try:
        yield otel.get_current_span()
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
        start_ns = epoch_ns + round(start_s * 1e9)
        new_span = _tracer.start_span(name, parent, attributes=attributes, start_time=start_ns)
        new_span.end(epoch_ns + round(end_s * 1e9))


def note_error(failed: otel.Span, error_type: str) -> None:
    """Mark a span as failed. `error_type`: an error code or a class name."""
    failed.set_attribute(ERROR_TYPE, error_type)
    failed.set_status(otel.StatusCode.ERROR)


def trace_id() -> str:
    """Return the id of the current trace, 32 hexadecimal digits, all 0 outside a trace."""
    return otel.format_trace_id(otel.get_current_span().get_span_context().trace_id)
