"""Lines of input and output files."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from service.batches.wire import BatchLine
from service.errors import InvalidRequest
from service.http.body import json_object
from service.validation import rejected_field


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

    @property
    def is_answer(self) -> bool:
        return self.response is not None and self.response.status_code == 200  # HTTP's OK


def read_lines(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each line that is not blank, and the line; a longer one than the limit is cut after it."""
    number = 0
    while line := file.readline(max_line_bytes + 2):
        number += 1
        if stripped := line.strip():
            yield number, stripped


def parse_line(data: bytes) -> BatchLine:
    """Return a line of an input file; raise `InvalidRequest`."""
    try:
        return BatchLine.model_validate(json_object(data))
    except ValidationError as error:
        rejected = rejected_field(error)
        raise InvalidRequest(rejected.message, rejected.name) from error


def unanswered(path: Path, max_line_bytes: int, done: Set[str]) -> Iterator[BatchLine]:
    """Yield the requests of a checked input file whose custom ids are not in `done`."""
    with path.open("rb") as file:
        for _, data in read_lines(file, max_line_bytes):
            line = parse_line(data)
            if line.custom_id not in done:
                yield line
