"""OpenAI's chat completions over the core: a message becomes a task, an answer a completion.

POST /v1/chat/completions

The text of a message is a prompt in the model's own syntax (`<OD>`, `detect cat`), or else a
question. A completion has the generated text; POST /v1/predict has the typed result. GET /v1/models
also has OpenAI's form.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import ErrorCode, InvalidRequest, ServiceError
from service.http.body import parse_image, read_json
from service.http.boundary import Interface, RestBoundary
from service.http.server_sent_events import event_stream, server_sent_event
from service.images.url_rules import ImageInput
from service.inference.core import Core, Fields, RequestContext
from service.inference.prediction import Answer
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
    ImagePart,
    TextPart,
)
from service.validation import validated
from tasks.errors import ParameterError
from tasks.families import FAMILIES
from tasks.prompts import AskedTask
from wire.disconnection import while_connected

_TYPES: dict[ErrorCode, ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
    "deadline_exceeded": "server_error",
}
_OPTIONS = ("model", "temperature", "top_p", "seed")


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
        """Answer a message of one image and one text: a completion, or a stream of chunks."""
        core = self._boundary.core()
        body = await self._boundary.read(read_json, request, context)
        chat = validated(ChatRequest, body)
        if chat.stream:
            chunks = ChunkStream(context.request_id, chat.model, chat.stream_options.include_usage)
            events = core.stream(_image(chat), _fields(chat, core), context)
            return await event_stream(request, context, OPENAI, events, chunks.events)
        completion = await while_connected(request.receive, complete(chat, core, context))
        return Response(completion.model_dump_json(), media_type="application/json")


async def complete(chat: ChatRequest, core: Core, context: RequestContext) -> ChatCompletion:
    """Return the completion of a message; raise `ServiceError`."""
    answer = await core.predict(_image(chat), _fields(chat, core), context)
    choice = ChatChoice(
        message=AssistantMessage(content=answer.written.text),
        finish_reason=answer.written.finish_reason,
    )
    return ChatCompletion(
        id=context.request_id,
        created=int(time.time()),
        model=answer.model.id,
        choices=[choice],
        usage=_usage(answer),
    )


def _image(chat: ChatRequest) -> ImageInput:
    """Return the message's one image."""
    urls = [part.image_url.url for part in chat.messages[0].content if isinstance(part, ImagePart)]
    if len(urls) != 1:
        raise InvalidRequest(f"the message has {len(urls)} image_url parts; send one", "messages")
    return parse_image(urls[0])


def _fields(chat: ChatRequest, core: Core) -> Fields:
    """Return the fields of POST /v1/predict with the meaning of a message."""
    texts = [part.text for part in chat.messages[0].content if isinstance(part, TextPart)]
    if len(texts) != 1:
        raise InvalidRequest(f"the message has {len(texts)} text parts; send one", "messages")
    try:
        asked = FAMILIES[core.models.get(chat.model).entry.family].read_prompt(texts[0])
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    # a text that is not a prompt of the model is a question
    asked = asked or AskedTask("visual_question_answering", {"question": texts[0]})
    fields = {
        "task": asked.task_id,
        **asked.values,
        **{name: getattr(chat, name) for name in _OPTIONS},
    }
    fields["max_new_tokens"] = chat.max_completion_tokens or chat.max_tokens
    shares = asked.region_shares
    if shares is None:
        return fields

    def with_region(size_wh: tuple[int, int]) -> Mapping[str, object]:
        region = [share * side for share, side in zip(shares, size_wh * 2, strict=True)]
        return fields | {"region": region}

    return with_region


@dataclass(slots=True)
class ChunkStream:
    """Renders the events of one streamed completion."""

    request_id: str
    model: str
    has_usage: bool
    created: int = field(default_factory=lambda: int(time.time()))
    has_begun: bool = False

    def events(self, event: str | Answer) -> Iterator[str]:
        """Yield the server-sent events for a piece of text, or for the end."""
        if not self.has_begun:
            self.has_begun = True
            yield self._chunk([ChunkChoice(delta={"role": "assistant", "content": ""})])
        if isinstance(event, str):
            yield self._chunk([ChunkChoice(delta={"content": event})])
            return
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
