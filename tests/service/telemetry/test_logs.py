import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.telemetry import logs
from service.telemetry.logs import JsonLines, RepeatedWarnings, TextLines, configure_logging
from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, compare, florence_fails
from tests.support.trace_collector import TRACE_ID, TRACEPARENT
from wire.runner_channel import RunnerUnreachable
from wire.telemetry.tracing import request_trace

TIMES = ("preprocess", "encode_queue", "decode_queue", "prefill", "postprocess", "total")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """The JSON log lines of the service."""
    stream = io.StringIO()
    logger = logging.getLogger("service")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_json_line(written: io.StringIO) -> None:
    logger = logging.getLogger("service.some")
    logger.warning("%d of\n%s “things”", 2, "many")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed", extra={logs.FIELDS: {"request_id": "a", "model": None}})
    plain, failed = lines(written)
    assert plain.keys() == {"time", "level", "logger", "process", "message"}
    assert (plain["level"], plain["logger"]) == ("WARNING", "service.some")
    assert plain["message"] == "2 of\nmany “things”"
    assert plain["time"].endswith("+00:00")
    assert (failed["request_id"], failed["model"]) == ("a", None)
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("ValueError: broken")


SECRET = 'sk-"very"-secret\u00e9'


@pytest.mark.parametrize("form", [TextLines("%(levelname)s %(message)s"), JsonLines()])
def test_log_has_no_secrets_and_no_control_characters(form: logging.Formatter) -> None:
    logs.hide_in_logs(SECRET)
    logs.hide_in_logs("abc")  # a part of words
    stream = io.StringIO()
    logger = logging.Logger("service.some")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger.addHandler(handler)
    shown = f"{SECRET} {SECRET!r} {SECRET!a} {json.dumps(SECRET)}"
    try:
        raise ValueError(f"{shown}\nERROR forged \x1b[2J \x9b \u202e \ud800")
    except ValueError as error:
        logger.exception("abc %s", error, extra={logs.FIELDS: {"name": shown}})
    text = stream.getvalue()
    assert "very" not in text
    assert text.count("[key]") >= 8
    assert "abc" in text
    for control in ("\x1b", "\x9b", "\u202e", "\ud800"):
        assert control not in text
    first, *others = text.splitlines()
    if isinstance(form, JsonLines):
        assert not others
        assert json.loads(first)["message"].endswith("\nERROR forged \x1b[2J \x9b \u202e \ud800")
    else:
        assert first.startswith("ERROR abc")
        assert first.endswith(r"\nERROR forged \x1b[2J \x9b \u202e \ud800")
        assert all(line.startswith("  ") for line in others)


def test_repeated_warnings_are_counted() -> None:
    """Attackers cannot fill the log by one kind of error."""
    line_filter = RepeatedWarnings()

    def passed(level: int, line: int, second: int) -> str | None:
        record = logging.LogRecord("service.some", level, "some.py", line, "%s!", ("no",), None)
        record.created = second + 0.5
        return record.getMessage() if line_filter.filter(record) else None

    assert [passed(logging.ERROR, 1, 7) for _ in range(15)] == ["no!"] * 10 + [None] * 5
    assert [passed(logging.WARNING, 2, 7), passed(logging.INFO, 1, 7)] == ["no!", "no!"]
    assert passed(logging.ERROR, 1, 8) == "no! (5 more were not written)"
    assert [passed(logging.ERROR, 1, 8) for _ in range(10)] == ["no!"] * 9 + [None]
    assert {passed(logging.INFO, 3, 8) for _ in range(20)} == {"no!"}


def test_each_model_has_a_line(written: io.StringIO) -> None:
    with request_trace({"traceparent": TRACEPARENT}, "test", None):
        compare(florence_fails(RunnerUnreachable("refused")), task="ocr")
    recorded = [line for line in lines(written) if line["logger"].endswith(".recording")]
    failed, line = sorted(recorded, key=lambda line: str(line["model"]))
    told = f"request request-1 not_ready api=test model={FLORENCE_ID} task=ocr trace_id={TRACE_ID}"
    assert failed["message"] == told
    told = f"request request-1 ok api=test model={PALIGEMMA_ID} task=ocr image=640x480 tokens=2"
    assert line["message"].startswith(f"{told} total_ms=")
    expected = {
        "request_id": "request-1",
        "trace_id": TRACE_ID,
        "status": "ok",
        "api": "test",
        "model": PALIGEMMA_ID,
        "task": "ocr",
        "image_width": 640,
        "image_height": 480,
        "generated_tokens": 2,
        "vision_cache": "miss",
        "encode_ms": 250,
        "decode_ms": 1000,
    }
    assert line | expected == line
    assert all(isinstance(line[f"{name}_ms"], float) for name in TIMES)


@pytest.mark.parametrize(("log_format", "form"), [("text", TextLines), ("json", JsonLines)])
def test_setting_selects_the_format(log_format: logs.LogFormat, form: type) -> None:
    ours = [logging.getLogger(name) for name in ("service", "runners", "wire")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in ours]
    try:
        configure_logging(log_format)
        forms = [type(logger.handlers[0].formatter) for logger in ours]
        # BentoML's handler would write each line again
        assert not any(logger.propagate for logger in ours)
    finally:
        for logger, (handlers, level, propagate) in zip(ours, before, strict=True):
            logger.handlers = handlers
            logger.level = level
            logger.propagate = propagate
    assert forms == [form] * 3
