"""The response about the image of a request, or about each of several."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from service.analysis.several import answer_each
from service.errors import InvalidRequest
from service.http.body import RequestBody
from service.images.url_rules import ImageInput
from service.inference.core import Core, RequestContext
from service.schema.analysis import OneJson, SeveralJson, several_json
from wire.disconnection import while_connected


def single_image(body: RequestBody) -> ImageInput:
    """Return the image of a request whose answers are streamed; raise `InvalidRequest`."""
    if body.images is not None:
        raise InvalidRequest("stream is true, which needs image; images is given", "stream")
    return body.image


async def answered(
    core: Core,
    request: Request,
    context: RequestContext,
    body: RequestBody,
    ask: Callable[[ImageInput, RequestContext], Awaitable[OneJson]],
) -> Response:
    """Return what `ask` returns about the image or each of several; end it with the connection."""
    rendered: OneJson | SeveralJson
    if body.images is None:
        rendered = await while_connected(request.receive, ask(body.image, context))
    else:
        answering = answer_each(core, body.images, context, ask)
        outcomes = await while_connected(request.receive, answering)
        rendered = several_json(outcomes, context.request_id)
    return Response(rendered.model_dump_json(), media_type="application/json")
