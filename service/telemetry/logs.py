"""Logging to standard error: one line per request, as text or JSON.

A JSON line has `time` (UTC), `level`, `logger`, `process` (id) and `message`; within a request
`trace_id`; for an exception its traceback as `exception`; and the fields that were logged as
`extra={FIELDS: …}`.
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


def configure_logging(log_format: LogFormat) -> None:
    """Configure the loggers of this project; BentoML's are left alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(_TEXT))
    for name in ("service", "runners", "wire"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
