import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from service.telemetry import logs
from service.telemetry.logs import JsonLines, configure_logging
from tests.support.core_calls import predict
from tests.support.fake_service import FLORENCE_ID, make_core
from tests.support.trace_collector import TRACE_ID, TRACEPARENT
from wire.telemetry.tracing import request_trace

TIMES = (
    "preprocess",
    "encode_queue",
    "encode",
    "decode_queue",
    "prefill",
    "decode",
    "postprocess",
    "total",
)


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
    logging.getLogger("service.some").warning("%d of\n%s “things”", 2, "many")
    (line,) = lines(written)
    assert set(line) == {"time", "level", "logger", "process", "message"}
    assert (line["level"], line["logger"], line["message"]) == (
        "WARNING",
        "service.some",
        "2 of\nmany “things”",
    )
    assert line["time"].endswith("+00:00")


def test_logged_fields_and_exception(written: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("service.some").exception(
            "failed", extra={logs.FIELDS: {"request_id": "a", "model": None}}
        )
    (line,) = lines(written)
    assert (line["request_id"], line["model"]) == ("a", None)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: broken")


def test_line_of_an_answer(written: io.StringIO) -> None:
    with request_trace({"traceparent": TRACEPARENT}, "test", None):
        predict(make_core(), task="ocr", model=FLORENCE_ID)
    (line,) = lines(written)
    labels = {
        name: line[name] for name in ("request_id", "trace_id", "status", "api", "model", "task")
    }
    assert labels == {
        "request_id": "request-1",
        "trace_id": TRACE_ID,
        "status": "ok",
        "api": "test",
        "model": FLORENCE_ID,
        "task": "ocr",
    }
    sizes = {
        name: line[name]
        for name in ("image_width", "image_height", "generated_tokens", "vision_cache")
    }
    assert sizes == {
        "image_width": 640,
        "image_height": 480,
        "generated_tokens": 2,
        "vision_cache": "miss",
    }
    assert all(isinstance(line[f"{name}_ms"], float) for name in TIMES)
    assert (line["encode_ms"], line["decode_ms"]) == (250, 1000)


@pytest.mark.parametrize(("log_format", "is_json"), [("text", False), ("json", True)])
def test_setting_selects_the_format(log_format: logs.LogFormat, is_json: bool) -> None:
    ours = [logging.getLogger(name) for name in ("service", "runners", "wire")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in ours]
    try:
        configure_logging(log_format)
        forms = [isinstance(logger.handlers[0].formatter, JsonLines) for logger in ours]
        # BentoML's handler would write each line again
        assert not any(logger.propagate for logger in ours)
    finally:
        for logger, (handlers, level, propagate) in zip(ours, before, strict=True):
            logger.handlers = handlers
            logger.level = level
            logger.propagate = propagate
    assert forms == [is_json] * 3
