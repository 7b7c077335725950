"""The way of spans to a collector, over OTLP/HTTP, in batches and from a thread: what it cannot take is dropped.

The library reads variables of its own, such as OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE and
OTEL_BSP_MAX_QUEUE_SIZE.
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
COMPLAINTS = (  # loggers of opentelemetry-sdk and its exporter, 1.45.1: of batches that fail, and of a full queue
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
)


class QuickToEnd(BatchSpanProcessor):
    """Ends within two seconds, whatever the collector does; the library's own waits for up to 30, and tries on."""

    def shutdown(self) -> None:
        """Send what is left; what the collector does not take in time is dropped."""
        self._batch_processor.shutdown(_FLUSH_MS)


class Seldom(logging.Filter):
    """Lets one line through in `every_s` seconds: a collector that is away is away for many batches."""

    def __init__(self, every_s: float = 60.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now = now
        self._last_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  # any line is one
        """Say whether it is time for a line again."""
        is_due = self._now() - self._last_s >= self._every_s
        if is_due:
            self._last_s = self._now()
        return is_due


def make_provider(endpoint: str, sample: float, part: str) -> TracerProvider:
    """Return what makes the spans of a part of the service, and starts the thread that sends them."""
    seldom = Seldom()
    for name in COMPLAINTS:
        logging.getLogger(name).addFilter(seldom)
    resource = Resource.create(
        {
            "service.namespace": "diptych",
            "service.name": part,
            "service.instance.id": str(uuid.uuid4()),
            "process.pid": os.getpid(),
        }
    )
    provider = TracerProvider(ParentBased(TraceIdRatioBased(sample)), resource, shutdown_on_exit=False)
    provider.add_span_processor(QuickToEnd(OTLPSpanExporter(endpoint.rstrip("/") + _PATH)))
    return provider
