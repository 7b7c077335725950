"""OpenAI's Files and Batches over the store; the batches are run by `service/batches/worker.py`.

A key sees its own files and batches only. Each call reads the store, so that any gateway that
shares it can answer.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from service.admission.places import RequestContext
from service.admission.threads import PARSING, STORING
from service.batches.store import Store, new_id
from service.batches.wire import Batch, BatchList, BatchRequest, FileFields, FileList, FileObject
from service.errors import InvalidRequest, NotReady, ServiceError
from service.http.body import BodyMemory, FormParser, Sink, read_json
from service.http.boundary import Body, RestBoundary
from service.openai.api import OPENAI
from service.settings import variable
from service.validation import validated
from tasks.errors import shown

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 200_000_000
MAX_FORM_BYTES = 10_000  # everything but the file
_PIECE_BYTES = 1_000_000  # read or written at a time, in a thread
_MAX_NAME_CHARS = 255
StoreEndpoint = Callable[[Store, Request, RequestContext], Awaitable[Body]]


class _Query(BaseModel):
    limit: int
    after: str | None = None


class _FilesQuery(_Query):
    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    purpose: Literal["batch", "batch_output"] | None = None


class _BatchesQuery(_Query):
    limit: int = Field(20, ge=1, le=100)


class _UploadForm:
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
            self.filename = (filename or "file.jsonl")[:_MAX_NAME_CHARS]
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
            problem = f"the fields beside the file exceed the limit of {MAX_FORM_BYTES} bytes"
            raise ServiceError(problem, code="payload_too_large")

    def fields(self) -> FileFields:
        """Return the fields; `name[key]` is a field of an object."""
        document: dict[str, Any] = {}
        for name, value in self._values.items():
            text = value.decode(errors="replace")
            outer, bracket, inner = name.partition("[")
            if bracket and isinstance(document.setdefault(outer, {}), dict):
                document[outer][inner.removesuffix("]")] = text
            else:
                document[name] = text
        return validated(FileFields, document)


async def read_upload(
    content_type: str, chunks: AsyncIterator[bytes], path: Path
) -> tuple[str, FileFields]:
    """Write a form's file to `path`, and return its name and the other fields.

    Raise `InvalidRequest` or `payload_too_large`.
    """
    with path.open("xb") as target:
        form = _UploadForm(target)
        parser = FormParser(content_type, form.begin)
        num_bytes = 0
        waiting = bytearray()
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > MAX_FILE_BYTES + MAX_FORM_BYTES:
                problem = f"the file exceeds the limit of {MAX_FILE_BYTES} bytes"
                raise ServiceError(problem, code="payload_too_large")
            waiting += chunk
            if len(waiting) >= _PIECE_BYTES:
                await PARSING.run(parser.write, bytes(waiting))
                waiting.clear()
        await PARSING.run(parser.write, bytes(waiting))
        parser.finish()
        target.flush()
        await STORING.run(os.fsync, target.fileno())
    if form.filename is None:
        raise InvalidRequest("file is missing: send a JSON Lines file", "file")
    return form.filename, form.fields()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of an open file, which is sent whole even if it is deleted."""
    with file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


class BatchesApi:
    """The endpoints of files and batches."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary
        folder = boundary.settings.batches_folder
        self._store = None if folder is None else Store(folder)

    def routes(self) -> list[Route]:
        def route(method: str, path: str, function: StoreEndpoint) -> Route:
            async def answer(request: Request, context: RequestContext) -> Body:
                if self._store is None:
                    setting = variable("batches_folder")
                    message = f"files and batches are disabled: {setting} is not set"
                    raise ServiceError(message, code="not_found")
                try:
                    return await function(self._store, request, context)
                except OSError as error:  # such as a full disk
                    request_id = context.request_id
                    logger.error("request %s: the folder of batches fails: %s", request_id, error)
                    problem = f"the disk of files and batches fails: {error.strerror}"
                    raise NotReady(f"{problem}; try again later") from error

            return self._boundary.route(method, path, answer, OPENAI)

        return [
            route("POST", "/v1/files", self.upload),
            route("GET", "/v1/files", self.list_files),
            route("GET", "/v1/files/{file_id}", _object(Store.file)),
            route("DELETE", "/v1/files/{file_id}", _object(Store.delete_file)),
            route("GET", "/v1/files/{file_id}/content", self.content),
            route("POST", "/v1/batches", self.create),
            route("GET", "/v1/batches", self.list_batches),
            route("GET", "/v1/batches/{batch_id}", _object(Store.batch)),
            route("POST", "/v1/batches/{batch_id}/cancel", _object(Store.cancel)),
        ]

    async def upload(self, store: Store, request: Request, context: RequestContext) -> Body:
        owner = context.quota.owner
        await STORING.run(store.check_room, owner)  # before the disk has the file
        file_id = new_id("file-")
        path = store.content(file_id)

        async def read(request: Request, _memory: BodyMemory) -> tuple[str, FileFields]:
            # its own limit is above that of other bodies
            content_type = request.headers.get("content-type", "")
            return await read_upload(content_type, request.stream(), path)

        try:
            filename, fields = await self._boundary.read(read, request, context)
            kept_s = fields.expires_after.seconds
            return await STORING.run(store.add_file, owner, file_id, filename, kept_s)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def list_files(self, store: Store, request: Request, context: RequestContext) -> Body:
        query = validated(_FilesQuery, dict(request.query_params))
        files = await STORING.run(store.files, context.quota.owner)
        if query.purpose is not None:
            files = [file for file in files if file.purpose == query.purpose]
        if query.order == "asc":
            files.reverse()
        return FileList.model_validate(_page(query, files))

    async def content(self, store: Store, request: Request, context: RequestContext) -> Body:
        file = await STORING.run(store.open, context.quota.owner, request.path_params["file_id"])
        headers = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
        return StreamingResponse(_pieces(file), headers=headers, media_type="application/jsonl")

    async def create(self, store: Store, request: Request, context: RequestContext) -> Body:
        body = await self._boundary.read(read_json, request, context)
        batch_request = validated(BatchRequest, body)
        return await STORING.run(store.create_batch, context.quota.owner, batch_request)

    async def list_batches(self, store: Store, request: Request, context: RequestContext) -> Body:
        query = validated(_BatchesQuery, dict(request.query_params))
        batches = await STORING.run(store.batches, context.quota.owner)
        return BatchList.model_validate(_page(query, batches))


def _object(method: Callable[[Store, str, str], BaseModel]) -> StoreEndpoint:
    """Return an endpoint that calls a method of the store with the id in the path."""

    async def answer(store: Store, request: Request, context: RequestContext) -> Body:
        (object_id,) = request.path_params.values()
        return await STORING.run(method, store, context.quota.owner, object_id)

    return answer


def _page(query: _Query, objects: Sequence[FileObject] | Sequence[Batch]) -> dict[str, object]:
    """Return the fields of a list: the objects behind `after`, at most `limit`."""
    ids = [item.id for item in objects]
    if query.after is not None and query.after not in ids:
        problem = f"after is {shown(query.after)}; it must be an id in this list"
        raise InvalidRequest(problem, "after")
    start = 0 if query.after is None else ids.index(query.after) + 1
    end = start + query.limit
    page = objects[start:end]
    return {
        "data": page,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(objects) > end,
    }
