"""The response about several images of one request."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidRequest, ServiceError
from service.http.body import RequestBody
from service.inference.core import RequestContext
from service.schema.analysis import AnalysisJson, several_json
from service.schema.wire import AnswerJson, ComparisonJson
from wire.disconnection import while_connected

AnswerT = TypeVar("AnswerT")


def refuse_stream(body: RequestBody) -> None:
    """Raise `InvalidRequest` if answers about several images are to be streamed."""
    if body.fields.get("stream") is True:
        raise InvalidRequest("stream is true, which needs image; images is given", "stream")


async def several_response(
    request: Request,
    context: RequestContext,
    answering: Awaitable[Sequence[AnswerT | ServiceError]],
    render: Callable[[AnswerT, str], AnswerJson | ComparisonJson | AnalysisJson],
) -> Response:
    """Await the answers while the client is connected; return them in order."""
    outcomes = await while_connected(request.receive, answering)
    body = several_json(outcomes, context.request_id, render)
    return Response(body.model_dump_json(), media_type="application/json")
