"""Lines of input and output files.

A file may have tens of thousands of ids of 512 characters, so ids are kept as hashes and lines as
their offsets.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel

from service.batches.wire import BatchLine
from service.http.json_values import unchecked_object
from service.validation import validated


class OutputResponse(BaseModel):
    """The response that an online request would have got."""

    status_code: int
    request_id: str
    body: dict[str, Any]


class OutputError(BaseModel):
    """Why a request was not run."""

    code: Literal["batch_expired"] = "batch_expired"
    message: str = "This request could not be executed before the completion window expired."


class OutputLine(BaseModel):
    """One line of an output or error file."""

    id: str
    custom_id: str
    response: OutputResponse | None
    error: OutputError | None = None

    def rendered(self) -> "RenderedLine":
        """Return the line as it is written; raise `ValueError` for half a surrogate pair."""
        is_answer = self.response is not None and self.response.status_code == 200  # HTTP's OK
        return RenderedLine(is_answer, self.model_dump_json().encode() + b"\n")


@dataclass(frozen=True, slots=True)
class RenderedLine:
    """A line of the output file, or else of the error file."""

    is_answer: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of an input file without its end; a blank one is empty."""

    number: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class LineSpan:
    """Where a request is in its file."""

    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input file that was checked."""

    path: Path
    max_line_bytes: int

    def unanswered(self, done: "IdHashes") -> Iterator[LineSpan]:
        """Yield the requests whose custom ids are not in `done`."""
        return (LineSpan(line.offset, len(line.data)) for line in self._unanswered(done))

    def unanswered_ids(self, done: "IdHashes") -> Iterator[str]:
        """Yield their custom ids."""
        return (parse_line(line.data).custom_id for line in self._unanswered(done))

    def read(self, span: LineSpan) -> bytes:
        with self.path.open("rb") as file:
            file.seek(span.offset)
            return next(read_lines(file, self.max_line_bytes)).data

    def _unanswered(self, done: "IdHashes") -> Iterator[RawLine]:
        with self.path.open("rb") as file:
            for line in read_lines(file, self.max_line_bytes):
                if line.data and not (done and id_hash(parse_line(line.data).custom_id) in done):
                    yield line


class IdHashes:
    """A set of hashes of custom ids, 8 bytes each."""

    def __init__(self, hashes: Iterable[int] = ()) -> None:
        self._sorted = array("Q", sorted(hashes))

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, hashed: int) -> bool:
        index = bisect_left(self._sorted, hashed)
        return index < len(self._sorted) and self._sorted[index] == hashed


def id_hash(custom_id: str) -> int:
    """Return 64 bits: two of 50,000 ids have the same with a probability below 1e-10, and are
    refused as one id.
    """
    return int.from_bytes(blake2b(custom_id.encode(), digest_size=8).digest())


def read_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[RawLine]:
    """Yield each line; a longer one than the limit is cut after it."""
    number = offset = 0
    while line := file.readline(max_line_bytes + 2):
        number += 1
        yield RawLine(number, offset, line.strip())
        offset += len(line)


def parse_line(data: bytes) -> BatchLine:
    """Return a line of an input file; raise `InvalidRequest`."""
    return validated(BatchLine, unchecked_object(data))
