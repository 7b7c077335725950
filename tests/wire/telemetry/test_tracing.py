"""Spans of one process, exported to a small real collector; and tracing without a collector."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.trace import INVALID_SPAN
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tests.support.trace_collector import (
    CALLER_ID,
    TRACE_ID,
    TRACEPARENT,
    CollectedSpan,
    Collector,
    collecting,
)
from tests.support.waiting import wait_until
from wire.telemetry import tracing
from wire.telemetry.tracing import (
    EXPORT_LOGGERS,
    past_span,
    request_trace,
    span,
    trace_id,
)

PROPAGATOR = TraceContextTextMapPropagator()


@pytest.fixture(autouse=True)
def no_rate_limits() -> None:
    """Remove the filters of earlier tests: a process starts tracing once, here each test does."""
    for name in EXPORT_LOGGERS:
        logging.getLogger(name).filters.clear()


@contextmanager
def exporting(endpoint: str | None) -> Iterator[None]:
    tracing.start(endpoint, "part")
    try:
        yield
    finally:
        tracing.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def by_name(collector: Collector) -> dict[str, CollectedSpan]:
    return {span.name: span for span in collector.spans}


def test_nested_spans(collector: Collector) -> None:
    caller = PROPAGATOR.extract({"traceparent": TRACEPARENT})
    with exporting(f"{collector.url}/"), span("outer", {"a": 1}, parent=caller):
        assert trace_id() == TRACE_ID
        with span("inner"):
            pass
    outer, inner = (by_name(collector)[name] for name in ("outer", "inner"))
    assert collector.paths == {"/v1/traces"}
    assert (outer.trace_id, inner.trace_id) == (TRACE_ID, TRACE_ID)
    assert (outer.parent_id, inner.parent_id) == (CALLER_ID, outer.span_id)
    assert outer.start_s <= inner.start_s <= inner.end_s <= outer.end_s
    assert (outer.part, outer.attributes) == ("part", {"a": 1})


def test_past_span(collector: Collector) -> None:
    with exporting(collector.url):
        now_s = time.monotonic()
        past_span("past", now_s - 0.02, now_s - 0.01, {"n": 2})
    (past,) = collector.spans
    assert past.end_s - past.start_s == pytest.approx(0.01, abs=1e-6)
    # Two clocks are read in succession, and the process may be preempted in between.
    assert past.start_s == pytest.approx(time.time(), abs=10)
    assert past.attributes == {"n": 2}


@pytest.mark.parametrize(
    ("error", "attributes"),
    [(ValueError("a-secret"), {"error.type": "ValueError"}), (asyncio.CancelledError(), {})],
)
def test_only_the_type_of_an_error_is_sent(
    collector: Collector, error: BaseException, attributes: dict[str, str]
) -> None:
    """A cancellation is not a failure."""
    with exporting(collector.url), pytest.raises(type(error)), span("failed"):
        raise error
    (failed,) = collector.spans
    assert (failed.has_failed, failed.attributes) == (bool(attributes), attributes)
    assert b"a-secret" not in failed.bytes


@pytest.mark.parametrize(
    ("sampler", "traceparent", "is_exported"),
    [
        (None, TRACEPARENT.removesuffix("1") + "0", False),
        (None, None, True),
        ("parentbased_traceidratio", TRACEPARENT, True),
        ("parentbased_traceidratio", None, False),
    ],
)
def test_sampling(
    collector: Collector,
    sampler: str | None,
    traceparent: str | None,
    is_exported: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller decides on its traces, the sampler's share of 0 applies to others."""
    if sampler is not None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    headers = {"traceparent": traceparent} if traceparent else {}
    with exporting(collector.url), span("call", parent=PROPAGATOR.extract(headers)):
        assert (trace_id() == TRACE_ID) == bool(headers)
        assert trace_id() != "0" * 32
    assert len(collector.spans) == is_exported


def test_no_spans_without_a_collector() -> None:
    threads = threading.active_count()
    caller = PROPAGATOR.extract({"traceparent": TRACEPARENT})
    with exporting(None), span("none", parent=caller) as no_span:
        past_span("none", 0, 1)
        assert no_span is INVALID_SPAN
        assert not tracing.are_made()
        assert threading.active_count() == threads
    ids = set[int]()
    for _ in range(3):
        with request_trace({}, "none", None) as no_span:
            ids.add(no_span.get_span_context().trace_id)
    assert len(ids) == 3


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_unreachable_collector(
    listens: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs one line of the log and a bounded time."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # ms
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "6")  # s
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "200")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100")
    num_threads = threading.active_count()
    with socket.socket() as listener, caplog.at_level(logging.WARNING):
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen()
        tracing.start(f"http://127.0.0.1:{listener.getsockname()[1]}", "part")
        start_s = time.monotonic()
        for _ in range(500):  # more than twice the size of the queue
            with span("one"):
                pass
        # 0.03 s without waiting; waiting for a batch takes 6
        assert time.monotonic() - start_s < 5
        wait_until(lambda: bool(caplog.records))
        start_s = time.monotonic()
        tracing.stop()
        # the limit is 2 s; a batch that is not accepted takes 6
        assert time.monotonic() - start_s < 5
    assert len(caplog.records) == 1
    wait_until(lambda: threading.active_count() == num_threads)
