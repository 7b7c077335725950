"""OpenAI's Files and Batches over the store; the batches are run by `service/batches/worker.py`.

POST /v1/files    GET /v1/files    GET /v1/files/{file_id}[/content]  DELETE /v1/files/{file_id}
POST /v1/batches  GET /v1/batches  GET /v1/batches/{batch_id}
POST /v1/batches/{batch_id}/cancel

A key sees its own files and batches only. Each call reads the store, so that any gateway that
shares it can answer.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.batches.store import KeyFolder, Store
from service.batches.uploads import Upload, read_upload
from service.batches.wire import Batch, BatchList, BatchRequest, FileDeleted, FileList, FileObject
from service.errors import InvalidRequest, NotFound, NotReady
from service.http.body import BodyMemory, read_json
from service.http.boundary import Endpoint, RestBoundary
from service.images.decoding import in_thread
from service.inference.core import RequestContext
from service.openai.api import OPENAI
from service.settings import variable
from service.validation import validated
from tasks.errors import shown
from wire.host import path_of

logger = logging.getLogger(__name__)

_MAX_FILES = 10_000  # per page
_MAX_BATCHES = 100
_USUAL_BATCHES = 20
_PURPOSES = ("batch", "batch_output")

ObjectT = TypeVar("ObjectT", FileObject, Batch)


class _OpenFile(FileResponse):
    """The content of an open file, readable even if the file is deleted."""

    def __init__(self, file: BinaryIO) -> None:
        path = path_of(file.fileno())
        super().__init__(path, media_type="application/jsonl", stat_result=os.fstat(file.fileno()))
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file:
            await super().__call__(scope, receive, send)


class BatchesApi:
    """The endpoints of files and batches."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary
        folder = boundary.settings.batches_folder
        self._store = None if folder is None else Store(folder)

    def routes(self) -> list[Route]:
        def route(method: str, path: str, function: Endpoint) -> Route:
            # an error of the disk, such as a full one, is `NotReady`
            async def answer(request: Request, context: RequestContext) -> Response:
                try:
                    return await function(request, context)
                except OSError as error:
                    logger.error(
                        "request %s: the folder of batches fails: %s", context.request_id, error
                    )
                    raise NotReady(
                        f"the disk of files and batches fails: {error.strerror}; try again later"
                    ) from error

            return Route(path, self._boundary.endpoint(answer, OPENAI), methods=[method])

        return [
            route("POST", "/v1/files", self.upload),
            route("GET", "/v1/files", self.list_files),
            route("GET", "/v1/files/{file_id}", self.show_file),
            route("DELETE", "/v1/files/{file_id}", self.delete_file),
            route("GET", "/v1/files/{file_id}/content", self.content),
            route("POST", "/v1/batches", self.create),
            route("GET", "/v1/batches", self.list_batches),
            route("GET", "/v1/batches/{batch_id}", self.show_batch),
            route("POST", "/v1/batches/{batch_id}/cancel", self.cancel),
        ]

    async def upload(self, request: Request, context: RequestContext) -> Response:
        folder = self._folder(context)
        await in_thread(folder.check_room)

        async def read(request: Request, _memory: BodyMemory) -> Upload:
            """Return an upload, whose own limit is above that of other bodies."""
            content_type = request.headers.get("content-type", "")
            return await read_upload(content_type, request.stream(), folder.uploads)

        upload = await self._boundary.read(read, request, context)
        try:
            kept_s = upload.fields.expires_after.seconds
            return _json(await in_thread(folder.upload, upload.path, upload.filename, kept_s))
        finally:
            upload.path.unlink(missing_ok=True)

    async def list_files(self, request: Request, context: RequestContext) -> Response:
        """List files, the newest first."""
        folder = self._folder(context)
        query = request.query_params
        order = query.get("order", "desc")
        purpose = query.get("purpose")
        if order not in ("asc", "desc"):
            raise InvalidRequest(f"order must be asc or desc, not {shown(order)}", "order")
        if purpose is not None and purpose not in _PURPOSES:
            raise InvalidRequest(
                f"purpose must be {' or '.join(_PURPOSES)}, not {shown(purpose)}", "purpose"
            )

        def page() -> FileList:
            ids = folder.file_ids()
            ids = _after(ids if order == "asc" else ids[::-1], query.get("after"))
            found = _page(ids, limit, folder.file, lambda file: purpose in (None, file.purpose))
            return FileList.model_validate(found)

        limit = _limit(request, _MAX_FILES, _MAX_FILES)
        return _json(await in_thread(page))

    async def show_file(self, request: Request, context: RequestContext) -> Response:
        return _json(await in_thread(self._folder(context).file, request.path_params["file_id"]))

    async def delete_file(self, request: Request, context: RequestContext) -> Response:
        file_id = request.path_params["file_id"]
        await in_thread(self._folder(context).delete_file, file_id)
        return _json(FileDeleted(id=file_id))

    async def content(self, request: Request, context: RequestContext) -> Response:
        folder = self._folder(context)
        return _OpenFile(await in_thread(folder.open, request.path_params["file_id"]))

    async def create(self, request: Request, context: RequestContext) -> Response:
        folder = self._folder(context)
        body = await self._boundary.read(read_json, request, context)
        asked = validated(BatchRequest, body)
        return _json(await in_thread(folder.create_batch, asked))

    async def list_batches(self, request: Request, context: RequestContext) -> Response:
        """List batches, the newest first."""
        folder = self._folder(context)
        limit = _limit(request, _USUAL_BATCHES, _MAX_BATCHES)

        def page() -> BatchList:
            ids = _after(folder.batch_ids()[::-1], request.query_params.get("after"))
            found = _page(ids, limit, lambda each: folder.state(each).batch, lambda _: True)
            return BatchList.model_validate(found)

        return _json(await in_thread(page))

    async def show_batch(self, request: Request, context: RequestContext) -> Response:
        state = await in_thread(self._folder(context).state, request.path_params["batch_id"])
        return _json(state.batch)

    async def cancel(self, request: Request, context: RequestContext) -> Response:
        return _json(await in_thread(self._folder(context).cancel, request.path_params["batch_id"]))

    def _folder(self, context: RequestContext) -> KeyFolder:
        """Return the folder of the request's key; raise `NotFound` if there is no store."""
        if self._store is None:
            raise NotFound(
                f"files and batches are disabled: {variable('batches_folder')} is not set"
            )
        return self._store.of(context.quota.owner)


def _limit(request: Request, usual: int, most: int) -> int:
    text = request.query_params.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= most):
        raise InvalidRequest(f"limit must be 1 to {most}, not {shown(text)}", "limit")
    return int(text)


def _after(ids: list[str], cursor: str | None) -> list[str]:
    """Return the ids after the last object of the previous page; raise `InvalidRequest`."""
    if cursor is None:
        return ids
    if cursor not in ids:
        raise InvalidRequest(f"after is {shown(cursor)}; it must be an id in this list", "after")
    return ids[ids.index(cursor) + 1 :]


def _page(
    ids: list[str], limit: int, load: Callable[[str], ObjectT], is_wanted: Callable[[ObjectT], bool]
) -> dict[str, object]:
    """Return the fields of a list with the first objects."""
    found: list[ObjectT] = []
    for each in ids:
        with suppress(NotFound):  # removed since the ids were read
            found.extend(filter(is_wanted, [load(each)]))
        if len(found) > limit:
            break
    page = found[:limit]
    first_id = page[0].id if page else None
    last_id = page[-1].id if page else None
    has_more = len(found) > limit
    return {"data": page, "first_id": first_id, "last_id": last_id, "has_more": has_more}


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")
