"""OpenAI's HTTP interface around the core, for clients that are there already. GET /v1/models is in its form too.

POST /v1/chat/completions
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from runners.transport.disconnection import while_connected
from service.http.boundary import Interface, RestBoundary
from service.http.server_sent_events import event_stream
from service.inference.core import RequestContext
from service.openai.chat import ChunkStream, completion, error_body, question_of, read_chat

OPENAI = Interface("openai", error_body)


class OpenAiApi:
    """The endpoints of OpenAI's API that are served."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/v1/chat/completions", self._boundary.endpoint(self.chat, OPENAI), methods=["POST"])]

    async def chat(self, request: Request, context: RequestContext) -> Response:
        """Answer a message of one image and one text, whole or as a stream of chunks."""
        core = self._boundary.authorized(request)
        chat = read_chat(await self._boundary.json(request, context))
        asked = question_of(chat, core)
        if chat.stream:
            chunks = ChunkStream(context.request_id, chat.model, chat.stream_options.include_usage)
            events = core.stream(asked.image, asked.fields, context)
            return await event_stream(request, context, OPENAI, events, chunks.events)
        answer = await while_connected(request.receive, core.predict(asked.image, asked.fields, context))
        return Response(completion(answer, context.request_id).model_dump_json(), media_type="application/json")
