"""Between OpenAI's chat completions and the core: a message becomes a task, an answer becomes a completion.

The text is a prompt as the model's users write it (`<OD>`, `detect cat`), or a question. What comes back is the text
that the model wrote; the typed result is what POST /v1/predict gives.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from service.errors import ErrorCode, InvalidRequest, ServiceError
from service.http.body import image_of_text
from service.http.server_sent_events import server_sent_event
from service.images.url_rules import ImageInput
from service.inference.core import Core, Fields
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
from tasks.asked import AskedTask
from tasks.errors import ParameterError
from tasks.families import FAMILIES

_TYPES: dict[ErrorCode, ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
    "deadline_exceeded": "server_error",
}
_OPTIONS = ("model", "temperature", "top_p", "seed")


def read_chat(body: Mapping[str, object]) -> ChatRequest:
    """Return the checked request; raise `InvalidRequest`."""
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        detail = error.errors()[0]
        param = ".".join(map(str, detail["loc"]))
        raise InvalidRequest(f"{param} is {repr(detail['input'])[:80]}: {detail['msg']}", param) from error


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """The image and the fields of POST /v1/predict that mean the same as a message."""

    image: ImageInput
    fields: Fields


def question_of(chat: ChatRequest, core: Core) -> ChatQuestion:
    """Return what a message asks for; raise an error of the service's tree."""
    asked = _asked(chat, core)
    fields = {"task": asked.task_id, **asked.values, **{name: getattr(chat, name) for name in _OPTIONS}}
    fields["max_new_tokens"] = chat.max_completion_tokens or chat.max_tokens
    shares = asked.region_shares
    if shares is None:
        return ChatQuestion(_image(chat), fields)
    return ChatQuestion(_image(chat), lambda size_wh: fields | {"region": _pixels(shares, size_wh)})


def _pixels(region_shares: Sequence[float], size_wh: tuple[int, int]) -> list[float]:
    return [share * side for share, side in zip(region_shares, size_wh * 2, strict=True)]


def _image(chat: ChatRequest) -> ImageInput:
    """Return the message's one image."""
    urls = [part.image_url.url for part in chat.messages[0].content if isinstance(part, ImagePart)]
    if len(urls) != 1:
        raise InvalidRequest(f"the message has {len(urls)} image_url parts; send one", "messages")
    return image_of_text(urls[0])


def _asked(chat: ChatRequest, core: Core) -> AskedTask:
    """Return the task that the message's one text asks for; what is no prompt of the model is a question."""
    texts = [part.text for part in chat.messages[0].content if isinstance(part, TextPart)]
    if len(texts) != 1:
        raise InvalidRequest(f"the message has {len(texts)} text parts; send one", "messages")
    try:
        asked = FAMILIES[core.models.get(chat.model).entry.family].read_prompt(texts[0])
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    return asked or AskedTask("visual_question_answering", {"question": texts[0]})


def completion(answer: Answer, request_id: str) -> ChatCompletion:
    """Return the body of an answer."""
    choice = ChatChoice(message=AssistantMessage(content=answer.raw_text), finish_reason=answer.finish_reason)
    return ChatCompletion(
        id=request_id, created=int(time.time()), model=answer.model.id, choices=[choice], usage=_usage(answer)
    )


@dataclass(slots=True)
class ChunkStream:
    """The events of one streamed completion."""

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
        yield self._chunk([ChunkChoice(delta={}, finish_reason=event.finish_reason)])
        if self.has_usage:
            yield self._chunk([], _usage(event))
        yield server_sent_event("[DONE]")

    def _chunk(self, choices: list[ChunkChoice], usage: ChatUsage | None = None) -> str:
        chunk = ChatChunk(id=self.request_id, created=self.created, model=self.model, choices=choices, usage=usage)
        return server_sent_event(chunk.model_dump_json())


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    kind = _TYPES.get(error.code, "invalid_request_error")
    detail = ChatErrorDetail(
        message=error.message, type=kind, param=error.param, code=error.code, request_id=request_id
    )
    return ChatError(error=detail).model_dump()


def _usage(answer: Answer) -> ChatUsage:
    num_read = answer.num_image_tokens + answer.num_prompt_tokens
    return ChatUsage(
        prompt_tokens=num_read,
        completion_tokens=answer.num_generated_tokens,
        total_tokens=num_read + answer.num_generated_tokens,
    )
