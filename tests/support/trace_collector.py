"""A trace collector: OTLP over HTTP on a free port; it stores the spans that it receives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.support.http_servers import Handler, serving

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_ID = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER_ID}-01"


@dataclass(frozen=True, slots=True)
class CollectedSpan:
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

    @classmethod
    def of(cls, span: SpanMessage, part: str) -> "CollectedSpan":
        return cls(
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


@dataclass(slots=True)
class Collector:
    url: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class OtlpHandler(Handler):
        def do_POST(self) -> None:
            collector.paths.add(self.path)
            request = ExportTraceServiceRequest.FromString(self.body())
            for resource in request.resource_spans:
                part = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    collector.spans += [CollectedSpan.of(span, part) for span in scope.spans]
            self.send(200)

    with serving(OtlpHandler) as collector.url:
        yield collector


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return list(map(_value, value.array_value.values))
    return getattr(value, kind)
