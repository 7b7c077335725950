"""Export of spans to a collector over OTLP/HTTP, in batches, by a thread.

Spans that cannot be sent are dropped. OpenTelemetry also reads its own environment variables, such
as OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and OTEL_BSP_MAX_QUEUE_SIZE.
"""

import logging
import math
import os
import time
import uuid
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

_PATH = "/v1/traces"
_FLUSH_MS = 2000
EXPORT_LOGGERS = (  # opentelemetry-sdk and its exporter, 1.45.1: failed batches, full queue
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)


class BoundedShutdownProcessor(BatchSpanProcessor):
    """Shuts down within two seconds; the library's own takes up to 30, with retries."""

    def shutdown(self) -> None:
        """Send the remaining spans; drop those that the collector does not accept in time."""
        self._batch_processor.shutdown(_FLUSH_MS)


class RateLimitFilter(logging.Filter):
    """Passes one line per `interval_s`: an unreachable collector fails many batches in a row."""

    def __init__(self, interval_s: float = 60.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._now = now
        self._last_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # all lines count
        is_due = self._now() - self._last_s >= self._interval_s
        if is_due:
            self._last_s = self._now()
        return is_due


def make_provider(endpoint: str, sample: float, part: str) -> TracerProvider:
    """Return the tracers' provider for `part`; a thread exports a `sample` of new traces."""
    rate_limit = RateLimitFilter()
    for name in EXPORT_LOGGERS:
        logging.getLogger(name).addFilter(rate_limit)
    resource = Resource.create(
        {
            "service.namespace": "diptych",
            "service.name": part,
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
    )
    provider = TracerProvider(
        ParentBased(TraceIdRatioBased(sample)), resource, shutdown_on_exit=False
    )
    provider.add_span_processor(
        BoundedShutdownProcessor(OTLPSpanExporter(endpoint.rstrip("/") + _PATH))
    )
    return provider
