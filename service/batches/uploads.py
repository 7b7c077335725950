"""Uploads: a multipart form whose file is written to the disk while it streams."""

import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from service.batches.wire import FileFields
from service.errors import InvalidRequest, PayloadTooLarge
from service.images.decoding import in_thread
from service.validation import validated
from tasks.errors import shown

if TYPE_CHECKING:  # python_multipart 0.0.34 declares it for type checkers alone
    from python_multipart.multipart import MultipartCallbacks

MAX_FILE_BYTES = 200_000_000
MAX_FORM_BYTES = 10_000  # everything but the file
_WRITE_BYTES = 1_000_000  # written at a time, in a thread
_MAX_NAME_CHARS = 255
_NESTED = re.compile(r"(\w+)\[(\w+)\]")  # expires_after[seconds]
_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Upload:
    """The name and the fields that came with a file."""

    filename: str
    fields: FileFields


class _Form:
    """The parts of a form: `file` is written to `target`, the others are collected."""

    def __init__(self, target: BinaryIO) -> None:
        self.filename: str | None = None
        self.is_complete = False
        self._target = target
        self._fields: dict[str, bytearray] = {}
        self._num_bytes = 0
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._field: bytearray | None = None  # None: the part is the file

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_end": self.on_end,
        }

    def fields(self) -> dict[str, object]:
        """Return the fields as JSON; `name[key]` is a field of an object."""
        document: dict[str, object] = {}
        for name, value in self._fields.items():
            text = value.decode(errors="replace")
            nested = _NESTED.fullmatch(name)
            if nested is None:
                document[name] = text
            elif isinstance(inner := document.setdefault(nested[1], {}), dict):
                inner[nested[2]] = int(text) if _NUMBER.fullmatch(text) else text
        return document

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        name = options.get(b"name", b"").decode(errors="replace")
        if name in self._fields or (name == "file" and self.filename is not None):
            raise InvalidRequest(f"{shown(name)} occurs twice; send it once", name)
        if name == "file":
            self.filename = options.get(b"filename", b"file.jsonl").decode(errors="replace")[
                :_MAX_NAME_CHARS
            ]
            self._field = None
        else:
            self._count(len(name))
            self._field = self._fields.setdefault(name, bytearray())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._target.write(data[start:end])
            return
        self._count(end - start)
        self._field.extend(data[start:end])

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_FORM_BYTES:
            raise PayloadTooLarge(
                f"the form's fields beside the file exceed the limit of {MAX_FORM_BYTES} bytes"
            )

    def on_end(self) -> None:
        self.is_complete = True


async def read_upload(content_type: str, chunks: AsyncIterator[bytes], path: Path) -> Upload:
    """Write a form's file to `path`; raise `InvalidRequest` or `PayloadTooLarge`."""
    mime_type, options = parse_options_header(content_type)
    if mime_type != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequest(
            f"Content-Type is {shown(content_type)}; it must be multipart/form-data with a boundary"
        )
    with path.open("xb") as target:
        form = _Form(target)
        await _parse(form, options[b"boundary"], chunks)
        target.flush()
        await in_thread(os.fsync, target.fileno())
    if not form.is_complete:
        raise InvalidRequest("the multipart body is truncated: its closing boundary is missing")
    if form.filename is None:
        raise InvalidRequest("file is missing: send a JSON Lines file", "file")
    return Upload(form.filename, validated(FileFields, form.fields()))


async def _parse(form: _Form, boundary: bytes, chunks: AsyncIterator[bytes]) -> None:
    num_bytes = 0
    waiting = bytearray()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > MAX_FILE_BYTES + MAX_FORM_BYTES:
                raise PayloadTooLarge(f"the file exceeds the limit of {MAX_FILE_BYTES} bytes")
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await in_thread(parser.write, bytes(waiting))
                waiting.clear()
        await in_thread(parser.write, bytes(waiting))
    except (MultipartParseError, ValueError) as error:
        raise InvalidRequest(f"the multipart body is malformed: {str(error)[:200]}") from error
