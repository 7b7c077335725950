"""Logging to standard error: one line per request, as text or JSON.

All that is logged, tracebacks included, passes `TextLines` or `JsonLines`: control characters are
escaped, so that no message forges a line or moves a terminal's cursor, and secrets are replaced.

A JSON line has `time` (UTC), `level`, `logger`, `process` (id) and `message`; within a request
`trace_id`; for an exception its traceback as `exception`; and the fields that were logged as
`extra={FIELDS: …}`. Of the warnings and errors of one line of code at most ten are written in a
second.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry.trace import get_current_span

from wire.telemetry.tracing import trace_id

LogFormat = Literal["text", "json"]

# key of a log call's `extra`: a mapping whose items become fields of the JSON line
FIELDS = "diptych_fields"
_HIDDEN = "[key]"
# of ASCII and Latin-1, separators of lines, directions of text, halves of surrogate pairs
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MIN_SECRET_CHARS = 4  # others are parts of words
_secrets: set[str] = set()
_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_MAX_OF_KIND = 10  # a second


def hide_in_logs(secret: str) -> None:
    """Replace a secret of the configuration in all lines that this process writes."""
    if len(secret) >= _MIN_SECRET_CHARS:
        # as it is, in JSON, and in what `repr` shows of a text
        _secrets.update((secret, json.dumps(secret)[1:-1], ascii(secret)[1:-1]))


def without_secrets(text: str) -> str:
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, _HIDDEN)
    return text


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], without_secrets(text))


class TextLines(logging.Formatter):
    """Formats each record as one line; those of a traceback begin with spaces."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {_escaped(line)}" for line in lines)


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
        line |= getattr(record, FIELDS, {})
        for name, value in line.items():
            if isinstance(value, str):
                line[name] = without_secrets(value)
        text = json.dumps(line, ensure_ascii=False, default=str)
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


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
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines(_TEXT))
    handler.addFilter(RepeatedWarnings())
    for name in ("service", "runners", "wire"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
