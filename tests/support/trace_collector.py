"""A trace collector: OTLP over HTTP on a free port; it stores the spans that it receives."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.support.waiting import wait_until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_ID}-01"


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """A received span."""

    part: str  # service name
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: none
    start_s: float
    end_s: float
    attributes: dict[str, Any]
    has_failed: bool
    bytes: bytes  # the request's body

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(slots=True)
class Collector:
    """The spans received so far."""

    url: str
    spans: list[CollectedSpan] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def wait_for(
        self, is_there: Callable[[list[CollectedSpan]], bool], timeout_s: float = 15
    ) -> list[CollectedSpan]:
        """Return the spans once `is_there` is True; fail with the received ones."""
        wait_until(
            lambda: is_there(self.spans),
            timeout_s,
            lambda: [(span.part, span.name) for span in self.spans],
        )
        return self.spans

    def trace(self, trace_id: str, *names: str) -> list[CollectedSpan]:
        """Return the spans of a trace once it has `names`, each as often as it is listed."""

        def has_all(spans: list[CollectedSpan]) -> bool:
            there = [span.name for span in spans if span.trace_id == trace_id]
            return all(there.count(name) >= names.count(name) for name in names)

        return [span for span in self.wait_for(has_all) if span.trace_id == trace_id]


@contextmanager
def collecting() -> Iterator[Collector]:

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.paths.add(self.path)
            collector.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(request: ExportTraceServiceRequest) -> Iterator[CollectedSpan]:
    for resource in request.resource_spans:
        part = _attributes(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            yield from (_span(part, span) for span in scope.spans)


def _span(part: str, span: SpanMessage) -> CollectedSpan:
    return CollectedSpan(
        part,
        span.name,
        SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _attributes(span.attributes),
        span.status.code == Status.STATUS_CODE_ERROR,
        span.SerializeToString(),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return list(map(_value, value.array_value.values))
    return getattr(value, kind)
