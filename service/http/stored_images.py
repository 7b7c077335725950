"""Images that are kept for a while, so that requests name them instead of sending them again.

POST /v1/images    GET /v1/images/{image_id}    DELETE /v1/images/{image_id}
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.errors import InvalidRequest
from service.http.body import read_body
from service.http.boundary import RestBoundary
from service.images.decoding import in_thread
from service.images.handle_ids import ImageHandle
from service.images.handle_store import StoredImage, stored
from service.inference.core import RequestContext
from service.schema.wire import DeletedImageJson, StoredImageJson
from tasks.errors import shown


class StoredImagesApi:
    """The endpoints of stored images; a key sees its own alone."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        endpoint = self._boundary.endpoint
        path = "/v1/images/{image_id}"
        return [
            Route("/v1/images", endpoint(self.store), methods=["POST"]),
            Route(path, endpoint(self.show), methods=["GET"]),
            Route(path, endpoint(self.delete), methods=["DELETE"]),
        ]

    async def store(self, request: Request, context: RequestContext) -> Response:
        """Store an image; the same bytes of a key have the same id."""
        core = self._boundary.core()
        images = stored(core.handles)
        body = await self._boundary.read(read_body, request, context)
        for name in body.fields:
            raise InvalidRequest(f"unknown field {shown(name)}; the only field is image", name[:80])
        async with core.opened(body.image, context) as image:
            size_wh = image.header.size_wh
            found = await in_thread(images.add, context.quota.owner, image.data, size_wh)
        return _json(found)

    async def show(self, request: Request, context: RequestContext) -> Response:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        return _json(await in_thread(images.describe, context.quota.owner, handle))

    async def delete(self, request: Request, context: RequestContext) -> Response:
        images = stored(self._boundary.core().handles)
        handle = ImageHandle(request.path_params["image_id"])
        await in_thread(images.remove, context.quota.owner, handle)
        return JSONResponse(DeletedImageJson(id=handle.text).model_dump())


def _json(image: StoredImage) -> Response:
    width, height = image.size_wh
    body = StoredImageJson(
        id=image.id,
        expires_at=image.expires_at,
        bytes=image.num_bytes,
        width=width,
        height=height,
    )
    return JSONResponse(body.model_dump())
