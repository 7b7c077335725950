"""Spans of one process, exported to a small real collector; and tracing without a collector."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry.trace import INVALID_SPAN, get_current_span

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
    RateLimitFilter,
    TraceOptions,
    call_headers,
    caller_context,
    past_span,
    request_trace,
    span,
    trace_id,
)

MALFORMED = [
    "",
    "00",
    f"00-{'0' * 32}-{CALLER_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"ff-{TRACE_ID}-{CALLER_ID}-01",
    f"00-{TRACE_ID.upper()}-{CALLER_ID}-01",
    "x" * 9999,
]


@pytest.fixture(autouse=True)
def no_rate_limits() -> None:
    """Remove the filters of earlier tests: a process starts tracing once, here each test does."""
    for logger in map(logging.getLogger, EXPORT_LOGGERS):
        logger.filters = [each for each in logger.filters if not isinstance(each, RateLimitFilter)]


@contextmanager
def exporting(endpoint: str, sample: float = 1.0) -> Iterator[None]:
    tracing.start(TraceOptions(endpoint, sample), "part")
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


def test_spans_are_nested_within_the_span_of_the_caller(collector: Collector) -> None:
    with (
        exporting(f"{collector.url}/"),
        span("outer", {"a": 1}, parent=caller_context({"traceparent": TRACEPARENT})),
    ):
        assert trace_id() == TRACE_ID
        with span("inner"):
            pass
    made = by_name(collector)
    assert collector.paths == {"/v1/traces"}
    assert {one.trace_id for one in made.values()} == {TRACE_ID}
    assert (made["outer"].parent_id, made["inner"].parent_id) == (CALLER_ID, made["outer"].span_id)
    assert (
        made["outer"].start_s <= made["inner"].start_s <= made["inner"].end_s <= made["outer"].end_s
    )
    assert (made["outer"].part, made["outer"].attributes) == ("part", {"a": 1})


def test_a_span_is_current_in_its_own_tasks_only(collector: Collector) -> None:
    async def one(name: str) -> None:
        with span(name):
            await asyncio.gather(*(child(f"{name}{index}") for index in range(2)))

    async def child(name: str) -> None:
        await asyncio.sleep(0)
        with span(name):
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))
        assert get_current_span() is INVALID_SPAN

    with exporting(collector.url):
        asyncio.run(both())
    made = by_name(collector)
    assert {name: made[name].parent_id for name in ("a0", "a1", "b0", "b1")} == {
        name: made[name[0]].span_id for name in ("a0", "a1", "b0", "b1")
    }


def test_a_past_span_has_its_own_times(collector: Collector) -> None:
    with exporting(collector.url), span("whole"):
        start_s = time.monotonic()
        time.sleep(0.02)
        past_span("past", start_s, start_s + 0.01, {"n": 2})
    made = by_name(collector)
    assert made["past"].duration_s == pytest.approx(0.01, abs=1e-6)
    # Two clocks are read in succession, and the process may be preempted in between.
    assert made["past"].start_s == pytest.approx(made["whole"].start_s, abs=10)
    assert made["past"].attributes == {"n": 2}


def test_a_failed_span_has_the_class_of_the_exception_and_not_its_message(
    collector: Collector,
) -> None:
    with exporting(collector.url), pytest.raises(ValueError, match="a-secret"), span("failed"):
        raise ValueError("a-secret")
    (failed,) = collector.spans
    assert failed.has_failed
    assert failed.attributes == {"error.type": "ValueError"}
    assert b"a-secret" not in failed.bytes


def test_a_cancelled_span_has_not_failed(collector: Collector) -> None:
    with exporting(collector.url), pytest.raises(asyncio.CancelledError), span("cancelled"):
        raise asyncio.CancelledError
    assert [(one.name, one.has_failed) for one in collector.spans] == [("cancelled", False)]


def test_the_caller_decides_on_sampling_of_its_traces_and_the_share_applies_to_others(
    collector: Collector,
) -> None:
    unsampled = TRACEPARENT.removesuffix("1") + "0"
    for sample, headers in (
        (1.0, {"traceparent": unsampled}),
        (0.0, {"traceparent": TRACEPARENT}),
        (0.0, {}),
    ):
        with (
            exporting(collector.url, sample),
            span(f"{sample} {headers}", parent=caller_context(headers)),
        ):
            assert (trace_id() == TRACE_ID) == bool(headers)
            assert trace_id() != "0" * 32
    assert [one.name for one in collector.spans] == [f"{0.0} {{'traceparent': '{TRACEPARENT}'}}"]


def test_the_headers_of_a_call_name_the_current_span(collector: Collector) -> None:
    with exporting(collector.url), span("caller") as made:
        called = get_current_span(caller_context(call_headers())).get_span_context()
        assert called.span_id == made.get_span_context().span_id
        assert called.is_remote


@pytest.mark.parametrize("traceparent", MALFORMED)
def test_a_malformed_traceparent_is_ignored(traceparent: str) -> None:
    assert get_current_span(caller_context({"traceparent": traceparent})) is INVALID_SPAN


def test_without_a_collector_there_are_no_spans_threads_or_headers() -> None:
    threads = threading.active_count()
    with (
        exporting_nothing(),
        span("none", parent=caller_context({"traceparent": TRACEPARENT})) as made,
    ):
        past_span("none", 0, 1)
        assert made is INVALID_SPAN
        assert call_headers() == {}
        assert not tracing.are_made()
        assert threading.active_count() == threads


def test_without_a_collector_each_request_without_a_trace_has_random_ids() -> None:
    contexts = []
    for _ in range(3):
        with request_trace({}, "none", None) as made:
            contexts.append(made.get_span_context())
    assert (
        len({context.trace_id for context in contexts})
        == len({context.span_id for context in contexts})
        == 3
    )


@contextmanager
def exporting_nothing() -> Iterator[None]:
    tracing.start(TraceOptions(), "part")
    yield
    tracing.stop()


def make_many(num: int) -> float:
    """Return the seconds that it takes to make `num` spans."""
    start_s = time.monotonic()
    for _ in range(num):
        with span("one"):
            pass
    return time.monotonic() - start_s


@pytest.mark.parametrize("listens", [False, True], ids=["nobody listens", "nobody answers"])
def test_an_unreachable_collector_costs_one_log_line_and_a_bounded_shutdown(
    listens: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # ms
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "6")  # s
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "200")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100")
    num_threads = threading.active_count()
    with socket.socket() as listener, caplog.at_level(logging.WARNING):
        listener.bind(("127.0.0.1", 0))
        if listens:
            listener.listen()
        tracing.start(TraceOptions(f"http://127.0.0.1:{listener.getsockname()[1]}"), "part")
        made_s = make_many(500)  # more than twice the size of the queue
        wait_until(lambda: bool(caplog.records))
        start_s = time.monotonic()
        tracing.stop()
        # the limit is 2 s; a batch that is not accepted takes 6
        assert time.monotonic() - start_s < 5
    assert made_s < 5  # 0.03 s without waiting; waiting for a batch takes 6
    assert len(caplog.records) == 1
    wait_until(lambda: threading.active_count() == num_threads)


def test_log_lines_pass_once_per_interval() -> None:
    clock_s = [0.0]
    rate_limit = RateLimitFilter(60, lambda: clock_s[0])
    record = logging.LogRecord("a", logging.WARNING, "a", 1, "gone", None, None)
    passed = []
    for now_s in (0, 1, 59, 60, 61, 119, 120):
        clock_s[0] = now_s
        if rate_limit.filter(record):
            passed.append(now_s)
    assert passed == [0, 60, 120]
