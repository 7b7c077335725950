"""Checks an input file before its batch starts: one JSON object a line, as in OpenAI's API.

Bodies are checked when they are answered: an invalid one is the error of its request, not of the
batch. Source of the codes: OpenAI's API reference, "The batch object", and its batches' errors.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.batches.lines import RawLine, id_hash, parse_line, read_lines
from service.batches.wire import BatchError, Endpoint
from service.errors import InvalidRequest
from service.images.decoding import in_thread
from tasks.errors import shown

MAX_LINES = 50_000
_MAX_BLANK_LINES = 50_000
_MAX_ERRORS = 100
# checked at a time, after which online requests get the interpreter's lock
_PIECE_BYTES = 1_000_000
_LINE_BYTES = 100  # a line costs as much time as this many bytes
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class Checked:
    """The number of requests of a file, and the first errors."""

    num_lines: int
    errors: list[BatchError]


class _Checks:
    """The lines of a file and what was found in them so far."""

    def __init__(self, lines: Iterator[RawLine], endpoint: Endpoint, max_line_bytes: int) -> None:
        self.num_lines = 0
        self.num_blank_lines = 0
        self.errors: list[BatchError] = []
        self._lines = lines
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        # hashes: the ids of a file may take its whole size several times over
        self._custom_ids = set[int]()

    @property
    def is_too_long(self) -> bool:
        return self.num_lines > MAX_LINES or self.num_blank_lines > _MAX_BLANK_LINES

    def check_next(self) -> bool:
        """Check the next lines; return False at the end, or with too many lines or errors."""
        num_bytes = 0
        for line in self._lines:
            self._check(line)
            if self.is_too_long or len(self.errors) >= _MAX_ERRORS:
                return False
            num_bytes += len(line.data) + _LINE_BYTES
            if num_bytes > _PIECE_BYTES:
                return True
        return False

    def _check(self, line: RawLine) -> None:
        if not line.data:
            self.num_blank_lines += 1
            return
        self.num_lines += 1

        def report(code: str, message: str, param: str | None = None) -> None:
            error = BatchError(code=code, line=line.number, message=message, param=param)
            self.errors.append(error)

        if len(line.data) > self._max_line_bytes:
            allowed = f"than a request may have, {self._max_line_bytes}"
            report("invalid_request", f"The line has more bytes {allowed}.")
            return
        try:
            request = parse_line(line.data)
        except InvalidRequest as error:
            code = "invalid_request" if error.param else "invalid_json_line"
            problem = error.message.replace("the body", "it", 1)
            report(code, f"The line is not a request: {problem}.", error.param)
            return
        if request.url != self._endpoint:
            problem = f"The url is {shown(request.url)}, the batch's endpoint {self._endpoint}."
            report("url_mismatch", problem, "url")
        hashed = id_hash(request.custom_id)
        if hashed in self._custom_ids:
            problem = "The custom_id is also that of an earlier line."
            report("duplicate_custom_id", problem, "custom_id")
        self._custom_ids.add(hashed)


async def check_file(path: Path, endpoint: Endpoint, max_line_bytes: int) -> Checked:
    """Check the input file of a batch; raise `OSError`."""
    with path.open("rb") as file:
        checks = _Checks(read_lines(file, max_line_bytes), endpoint, max_line_bytes)
        while await in_thread(checks.check_next):
            await asyncio.sleep(_PAUSE_S)
    errors = checks.errors[:_MAX_ERRORS]
    if not errors and checks.is_too_long:
        message = f"The file has more than {MAX_LINES} requests or {_MAX_BLANK_LINES} blank lines."
        errors = [BatchError(code="too_many_tasks", line=None, message=message)]
    elif not errors and not checks.num_lines:
        message = "The file has no requests."
        errors = [BatchError(code="empty_file", line=None, message=message)]
    return Checked(checks.num_lines, errors)
