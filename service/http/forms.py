"""Multipart forms, read part by part while their bytes arrive."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from service.errors import InvalidRequest
from tasks.errors import shown

if TYPE_CHECKING:  # python_multipart 0.0.34 declares it for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
_MAX_ERROR_CHARS = 200  # a parser's message is cut here

# Receives the pieces of a part's content
Sink = Callable[[bytes], object]


class FormParser:
    """Passes the content of each part to what `begin_part` returns for its name and file name.

    A part that is no file has no file name. Methods raise `InvalidRequest`.
    """

    def __init__(self, content_type: str, begin_part: Callable[[str, str | None], Sink]) -> None:
        mime_type, options = parse_options_header(content_type)
        if mime_type != FORM.encode() or b"boundary" not in options:
            problem = f"Content-Type is {shown(content_type)}"
            raise InvalidRequest(f"{problem}; it must be {FORM} with a boundary")
        callbacks: MultipartCallbacks = {
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._pass_on,
            "on_end": self._end_form,
        }
        self._begin_part = begin_part
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._is_complete = False
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except (FormParserError, ValueError) as error:
            raise _malformed(error) from error

    def write(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except (FormParserError, ValueError) as error:
            raise _malformed(error) from error

    def finish(self) -> None:
        if not self._is_complete:
            raise InvalidRequest("the multipart body is truncated: its closing boundary is missing")

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        if b"name" not in options:
            raise InvalidRequest("the multipart body is malformed: a part has no name")
        filename = options.get(b"filename")
        self._sink = self._begin_part(
            options[b"name"].decode(errors="replace"),
            None if filename is None else filename.decode(errors="replace"),
        )

    def _pass_on(self, data: bytes, start: int, end: int) -> None:
        self._sink(data[start:end])

    def _end_form(self) -> None:
        self._is_complete = True


def _malformed(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the multipart body is malformed: {str(error)[:_MAX_ERROR_CHARS]}")
