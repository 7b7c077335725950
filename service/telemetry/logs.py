"""Logging to standard error: one line per request, as text or JSON.

A JSON line has `time` (UTC), `level`, `logger`, `process` (id) and `message`; within a request
`trace_id`; for an exception its traceback as `exception`; and the fields that were logged as
`extra={FIELDS: …}`. Of the warnings and errors of one line of code at most ten are written in a
second.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Literal

from opentelemetry.trace import get_current_span

from wire.telemetry.tracing import trace_id

LogFormat = Literal["text", "json"]

# key of a log call's `extra`: a mapping whose items become fields of the JSON line
FIELDS = "diptych_fields"
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_MAX_OF_KIND = 10  # a second


class JsonLines(logging.Formatter):
    """Formats each record as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if get_current_span().get_span_context().is_valid:
            line["trace_id"] = trace_id()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, FIELDS, {}), ensure_ascii=False, default=str)


class RepeatedWarnings(logging.Filter):
    """Counts warnings and errors of one line of code above the maximum, instead of passing them.

    The count is in the next one that passes.
    """

    def __init__(self) -> None:
        super().__init__()
        # file and line of the call -> second of the epoch, number in it, number left out since one
        # was passed
        self._kinds: dict[tuple[str, int], tuple[int, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = record.pathname, record.lineno
        second, number, num_left_out = self._kinds.get(kind, (0, 0, 0))
        number = number + 1 if second == int(record.created) else 1
        is_passed = number <= _MAX_OF_KIND
        if is_passed and num_left_out:
            record.msg = f"{record.getMessage()} ({num_left_out} more were not written)"
            record.args = None
        num_left_out = 0 if is_passed else num_left_out + 1
        self._kinds[kind] = int(record.created), number, num_left_out
        return is_passed


def configure_logging(log_format: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(_TEXT))
    handler.addFilter(RepeatedWarnings())
    for name in ("service", "runners", "wire"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
