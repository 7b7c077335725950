"""How this service logs, to standard error: one line a request, as text or as JSON.

A line of JSON is an object with `time` (UTC), `level`, `logger`, `process` (its id) and `message`; of a request, with
`trace_id`; where there was an exception, with its traceback as `exception`; and with the fields that were logged beside
the message (`fields`).
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from opentelemetry.trace import get_current_span

from runners.telemetry.tracing import trace_id

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_FIELDS = "diptych_fields"


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """Return the `extra` of a message by which a line of JSON has `values` as fields of their own."""
    return {_FIELDS: values}


class JsonLines(logging.Formatter):
    """Makes one object a line of whatever is logged."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
        return json.dumps(line | getattr(record, _FIELDS, {}), ensure_ascii=False, default=str)


def configure_logging(log_format: LogFormat) -> None:
    """Let the project's own loggers write lines with time and level, beside BentoML's."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(_TEXT))
    for name in ("service", "runners"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
