"""The route of OpenAI's chat completions over the core.

GET /v1/models also has OpenAI's form.
"""

from starlette.requests import Request
from starlette.routing import Route

from service.admission.places import RequestContext
from service.admission.threads import PARSING, POSTPROCESSING
from service.http.body import read_json
from service.http.boundary import Body, Interface, RestBoundary, event_stream
from service.inference.core import Core
from service.openai.chat_requests import ChatRequest, ResponseFormat, read_fields, read_image
from service.openai.completions import (
    ChatCompletion,
    ChunkStream,
    check_schema,
    completion,
    error_body,
)
from service.validation import validated
from wire.disconnection import while_connected

OPENAI = Interface("openai", error_form=error_body)


class OpenAiApi:
    """The served endpoints of OpenAI's API."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        return [self._boundary.route("POST", "/v1/chat/completions", self.chat, OPENAI)]

    async def chat(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        chat = validated(ChatRequest, await self._boundary.read(read_json, request, context))
        if not chat.stream:
            return await while_connected(request.receive, complete(chat, core, context))
        await _check_format(chat.response_format)
        events = core.stream(read_image(chat), read_fields(chat, core), context)
        chunks = ChunkStream(chat, context.request_id)
        return await event_stream(request, context, OPENAI, events, chunks.render)


async def complete(chat: ChatRequest, core: Core, context: RequestContext) -> ChatCompletion:
    await _check_format(chat.response_format)
    answer = await core.predict(read_image(chat), read_fields(chat, core), context)
    if chat.response_format.type == "text":
        return completion(answer, chat, context.request_id)
    return await POSTPROCESSING.run(completion, answer, chat, context.request_id)


async def _check_format(response_format: ResponseFormat) -> None:
    if response_format.json_schema is not None:
        await PARSING.run(check_schema, response_format.json_schema.schema_)
