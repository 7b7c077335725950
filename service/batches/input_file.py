"""The lines of an input file: checked before its batch runs, then read one by one.

Bodies are checked when they are answered: an invalid one is the error of its request, not of the
batch. Lines are kept as their place, custom ids as hashes: a file may have tens of thousands of
ids of 512 characters. Source of the codes: OpenAI's API reference, "The batch object", and its
batches' errors.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from service.batches.wire import BatchError, BatchLine, Endpoint
from service.errors import InvalidRequest
from service.http.body import unchecked_object
from service.images.decoding import in_thread
from service.validation import validated
from tasks.errors import shown

MAX_REQUESTS = 50_000
MAX_BLANK_LINES = 50_000
_MAX_ERRORS = 100
# checked at a time, after which online requests get the interpreter's lock
_PIECE_BYTES = 1_000_000
_LINE_BYTES = 100  # a line costs as much time as this many bytes
_PAUSE_S = 0.01


@dataclass(frozen=True, slots=True)
class LinePlace:
    """Where a request is in its file."""

    number: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file; the lines that it yields are not blank once it was checked."""

    path: Path
    max_line_bytes: int

    def unanswered(self, is_answered: bytearray) -> Iterator[LinePlace]:
        """Yield the requests whose line number is not marked."""
        with self.path.open("rb") as file:
            for place, data in self.lines(file):
                if data and not is_answered[place.number]:
                    yield place

    def read(self, place: LinePlace) -> bytes:
        with self.path.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.num_bytes)

    def lines(self, file: BinaryIO) -> Iterator[tuple[LinePlace, bytes]]:
        """Yield each line without white space around it; a longer one than the limit is cut."""
        number = offset = 0
        while line := file.readline(self.max_line_bytes + 2):
            number += 1
            start = offset + len(line) - len(line.lstrip())
            data = line.strip()
            yield LinePlace(number, start, len(data)), data
            offset += len(line)


def parse_line(data: bytes) -> BatchLine:
    return validated(BatchLine, unchecked_object(data))


async def check_file(source: InputFile, endpoint: Endpoint) -> "FileChecks":
    with source.path.open("rb") as file:
        checks = FileChecks(source, file, endpoint)
        while await in_thread(checks.check_piece):
            await asyncio.sleep(_PAUSE_S)
    if not checks.errors and checks.is_too_long:
        limits = f"{MAX_REQUESTS} requests or {MAX_BLANK_LINES} blank lines"
        checks.report(None, "too_many_tasks", f"The file has more than {limits}.")
    elif not checks.errors and not checks.num_requests:
        checks.report(None, "empty_file", "The file has no requests.")
    return checks


class FileChecks:
    """The checks of one file so far: the number of its requests, and the first errors."""

    def __init__(self, source: InputFile, file: BinaryIO, endpoint: Endpoint) -> None:
        self.num_requests = 0
        self.errors: list[BatchError] = []
        self._num_blank_lines = 0
        self._lines = source.lines(file)
        self._max_line_bytes = source.max_line_bytes
        self._endpoint = endpoint
        self._id_hashes = set[bytes]()

    @property
    def is_too_long(self) -> bool:
        return self.num_requests > MAX_REQUESTS or self._num_blank_lines > MAX_BLANK_LINES

    def check_piece(self) -> bool:
        """Check the next lines; return False at the end, or with too many lines or errors."""
        num_bytes = 0
        for place, data in self._lines:
            if data:
                self.num_requests += 1
                self._check(place.number, data)
            else:
                self._num_blank_lines += 1
            if self.is_too_long or len(self.errors) >= _MAX_ERRORS:
                return False
            num_bytes += place.num_bytes + _LINE_BYTES
            if num_bytes > _PIECE_BYTES:
                return True
        return False

    def _check(self, number: int, data: bytes) -> None:
        if len(data) > self._max_line_bytes:
            problem = f"The line has more bytes than a request may have, {self._max_line_bytes}."
            self.report(number, "invalid_request", problem)
            return
        try:
            line = parse_line(data)
        except InvalidRequest as error:
            code = "invalid_request" if error.param else "invalid_json_line"
            problem = error.message.replace("the body", "it", 1)
            self.report(number, code, f"The line is not a request: {problem}.", error.param)
            return
        if line.url != self._endpoint:
            problem = f"The url is {shown(line.url)}, the batch's endpoint {self._endpoint}."
            self.report(number, "url_mismatch", problem, "url")
        # 64 bits: two of 50,000 ids have the same with a probability below 1e-10
        id_hash = blake2b(line.custom_id.encode(), digest_size=8).digest()
        if id_hash in self._id_hashes:
            problem = "The custom_id is also that of an earlier line."
            self.report(number, "duplicate_custom_id", problem, "custom_id")
        self._id_hashes.add(id_hash)

    def report(self, number: int | None, code: str, message: str, param: str | None = None) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append(BatchError(code=code, line=number, message=message, param=param))
