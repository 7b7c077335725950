"""Uploads: a multipart form whose file is written to the disk while it streams."""

import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.batches.wire import FileFields
from service.errors import InvalidRequest, ServiceError
from service.http.forms import FormParser, Sink
from service.images.decoding import in_thread
from service.validation import validated
from tasks.errors import shown

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


class _Parts:
    """The parts of a form: `file` is written to `target`, the others are collected."""

    def __init__(self, target: BinaryIO) -> None:
        self.filename: str | None = None
        self._target = target
        self._values: dict[str, bytearray] = {}
        self._num_bytes = 0

    def begin(self, name: str, filename: str | None) -> Sink:
        if name in self._values or (name == "file" and self.filename is not None):
            raise InvalidRequest(f"{shown(name)} occurs twice; send it once", name)
        if name == "file":
            filename = "file.jsonl" if filename is None else filename
            self.filename = filename[:_MAX_NAME_CHARS]
            return self._target.write
        value = self._values[name] = bytearray()

        def extend(data: bytes) -> None:
            self._count(len(data))
            value.extend(data)

        self._count(len(name))
        return extend

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > MAX_FORM_BYTES:
            problem = (
                f"the form's fields beside the file exceed the limit of {MAX_FORM_BYTES} bytes"
            )
            raise ServiceError(problem, code="payload_too_large")

    def fields(self) -> dict[str, object]:
        """Return the fields as JSON; `name[key]` is a field of an object."""
        document: dict[str, object] = {}
        for name, value in self._values.items():
            text = value.decode(errors="replace")
            nested = _NESTED.fullmatch(name)
            if nested is None:
                document[name] = text
            elif isinstance(inner := document.setdefault(nested[1], {}), dict):
                inner[nested[2]] = int(text) if _NUMBER.fullmatch(text) else text
        return document


async def read_upload(content_type: str, chunks: AsyncIterator[bytes], path: Path) -> Upload:
    """Write a form's file to `path`; raise `InvalidRequest` or `payload_too_large`."""
    with path.open("xb") as target:
        parts = _Parts(target)
        parser = FormParser(content_type, parts.begin)
        num_bytes = 0
        waiting = bytearray()
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > MAX_FILE_BYTES + MAX_FORM_BYTES:
                problem = f"the file exceeds the limit of {MAX_FILE_BYTES} bytes"
                raise ServiceError(problem, code="payload_too_large")
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await in_thread(parser.write, bytes(waiting))
                waiting.clear()
        await in_thread(parser.write, bytes(waiting))
        parser.finish()
        target.flush()
        await in_thread(os.fsync, target.fileno())
    if parts.filename is None:
        raise InvalidRequest("file is missing: send a JSON Lines file", "file")
    return Upload(parts.filename, validated(FileFields, parts.fields()))
