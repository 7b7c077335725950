"""OpenAI's chat completions over the core: a conversation becomes a task, an answer a completion.

POST /v1/chat/completions

A completion has the generated text, or the typed result if `response_format` asks for JSON. GET
/v1/models also has OpenAI's form.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import ErrorCode, ServiceError
from service.http.body import read_json
from service.http.boundary import Interface, RestBoundary
from service.http.server_sent_events import event_stream, server_sent_event
from service.images.decoding import in_thread
from service.inference.core import Core, RequestContext
from service.inference.prediction import Answer, Piece
from service.openai.conversation import fields_of, image_of
from service.openai.typed_content import check_schema, typed_content
from service.openai.wire import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatError,
    ChatErrorDetail,
    ChatRequest,
    ChatUsage,
    ChunkChoice,
    ErrorType,
    ResponseFormat,
    StreamOptions,
)
from service.validation import validated
from wire.disconnection import while_connected

_TYPES: dict[ErrorCode, ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
    "deadline_exceeded": "server_error",
}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    detail = ChatErrorDetail(
        message=error.message,
        type=_TYPES.get(error.code, "invalid_request_error"),
        param=error.param,
        code=error.code,
        request_id=request_id,
    )
    return ChatError(error=detail).model_dump()


OPENAI = Interface("openai", error_body)


class OpenAiApi:
    """The served endpoints of OpenAI's API."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        return [
            Route(
                "/v1/chat/completions", self._boundary.endpoint(self.chat, OPENAI), methods=["POST"]
            )
        ]

    async def chat(self, request: Request, context: RequestContext) -> Response:
        """Answer the last message of a conversation: a completion, or a stream of chunks."""
        core = self._boundary.core()
        body = await self._boundary.read(read_json, request, context)
        chat = validated(ChatRequest, body)
        if chat.stream:
            await _check_format(chat.response_format)
            options = chat.stream_options or StreamOptions()
            chunks = ChunkStream(
                context.request_id, chat.model, options.include_usage, chat.response_format
            )
            events = core.stream(image_of(chat), fields_of(chat, core), context)
            return await event_stream(request, context, OPENAI, events, chunks.events)
        completion = await while_connected(request.receive, complete(chat, core, context))
        return Response(completion.model_dump_json(), media_type="application/json")


async def complete(chat: ChatRequest, core: Core, context: RequestContext) -> ChatCompletion:
    """Return the completion of a conversation; raise `ServiceError`."""
    await _check_format(chat.response_format)
    answer = await core.predict(image_of(chat), fields_of(chat, core), context)
    content = answer.written.text
    if chat.response_format.type != "text":
        content = await in_thread(typed_content, answer, chat.response_format)
    choice = ChatChoice(
        message=AssistantMessage(content=content), finish_reason=answer.written.finish_reason
    )
    return ChatCompletion(
        id=context.request_id,
        created=int(time.time()),
        model=answer.model.id,
        choices=[choice],
        usage=_usage(answer),
    )


async def _check_format(response_format: ResponseFormat) -> None:
    if response_format.json_schema is not None:
        await in_thread(check_schema, response_format.json_schema.schema_)


@dataclass(slots=True)
class ChunkStream:
    """Renders the events of one streamed completion; typed content is one piece at the end."""

    request_id: str
    model: str
    has_usage: bool
    response_format: ResponseFormat
    created: int = field(default_factory=lambda: int(time.time()))
    has_begun: bool = False

    def events(self, event: Piece | Answer) -> Iterator[str]:
        """Yield the server-sent events for a piece of text, or for the end."""
        if not self.has_begun:
            self.has_begun = True
            yield self._chunk([ChunkChoice(delta={"role": "assistant", "content": ""})])
        is_typed = self.response_format.type != "text"
        if isinstance(event, Piece):
            if not is_typed:
                yield self._chunk([ChunkChoice(delta={"content": event.text})])
            return
        if is_typed:
            content = typed_content(event, self.response_format)
            yield self._chunk([ChunkChoice(delta={"content": content})])
        yield self._chunk([ChunkChoice(delta={}, finish_reason=event.written.finish_reason)])
        if self.has_usage:
            yield self._chunk([], _usage(event))
        yield server_sent_event("[DONE]")

    def _chunk(self, choices: list[ChunkChoice], usage: ChatUsage | None = None) -> str:
        chunk = ChatChunk(
            id=self.request_id, created=self.created, model=self.model, choices=choices, usage=usage
        )
        return server_sent_event(chunk.model_dump_json())


def _usage(answer: Answer) -> ChatUsage:
    num_read = answer.model.manifest.num_image_tokens + answer.written.num_prompt_tokens
    return ChatUsage(
        prompt_tokens=num_read,
        completion_tokens=answer.written.num_generated_tokens,
        total_tokens=num_read + answer.written.num_generated_tokens,
    )
