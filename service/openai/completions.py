"""Completions and errors of OpenAI's chat: the generated text, or the typed result as JSON.

A client's schema is untrusted: keywords that run its regular expressions are refused, a reference
is followed within the schema only, and alternatives are tried for a bounded number of steps.

Source of names and meaning: OpenAI's API reference, "The chat completion object" and "The chat
completion chunk object".
"""

import json
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic import BaseModel, Field
from referencing import Registry
from referencing.exceptions import Unresolvable

from service.errors import ErrorCode, InvalidRequest, ServiceError
from service.http.boundary import server_sent_event
from service.inference.prediction import Answer, Piece
from service.openai.chat_requests import ChatRequest, ResponseFormat
from service.schema.rendering import RESULT
from wire.runner_messages import FinishReason

ErrorType = Literal[
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
]
_TYPES: dict[ErrorCode, ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
    "runner_failed": "server_error",
    "deadline_exceeded": "server_error",
}
_PARAM = "response_format.json_schema.schema"
_REFUSED = ("pattern", "patternProperties", "format", "$dynamicRef")
_MAX_STEPS = 20_000
_steps: ContextVar[Iterator[int]] = ContextVar("steps")


class ChatUsage(BaseModel):
    """Token counts; prompt_tokens includes the image."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AssistantMessage(BaseModel):
    """The generated text."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The only choice."""

    index: int = Field(0, ge=0, le=0)
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="seconds since 1970")
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


class ChatErrorDetail(BaseModel):
    """Message, type and field of an error."""

    message: str
    type: ErrorType
    param: str | None
    code: ErrorCode
    request_id: str


class ChatError(BaseModel):
    """Body of every error response."""

    error: ChatErrorDetail


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    detail = ChatErrorDetail(
        message=error.message,
        type=_TYPES.get(error.code, "invalid_request_error"),
        param=error.param,
        code=error.code,
        request_id=request_id,
    )
    return ChatError(error=detail).model_dump()


def completion(answer: Answer, chat: ChatRequest, request_id: str) -> ChatCompletion:
    """Return the answer; raise `InvalidRequest` if it does not match the client's schema."""
    message = AssistantMessage(content=_content(answer, chat))
    return ChatCompletion(
        id=request_id,
        created=int(time.time()),
        model=answer.model.id,
        choices=[ChatChoice(message=message, finish_reason=_finish_reason(answer, chat))],
        usage=_usage(answer),
    )


@dataclass(slots=True)
class ChunkStream:
    """The chunks of one stream.

    Typed content, and text that `stop` may cut, is one piece at the end.
    """

    chat: ChatRequest
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))
    has_begun: bool = False

    def render(self, event: Piece | Answer) -> Iterator[str]:
        """Yield the server-sent events of a piece of text, or of the whole answer."""
        if not self.has_begun:
            self.has_begun = True
            yield self._choice(role="assistant", content="")
        is_one_piece = self.chat.response_format.type != "text" or bool(self.chat.stop)
        if isinstance(event, Piece):
            if not is_one_piece:
                yield self._choice(content=event.text)
            return
        if is_one_piece:
            yield self._choice(content=_content(event, self.chat))
        yield self._choice(_finish_reason(event, self.chat))
        options = self.chat.stream_options
        if options is not None and options.include_usage:
            yield self._chunk([], _usage(event))
        yield server_sent_event("[DONE]")

    def _choice(self, finish_reason: str | None = None, **delta: str) -> str:
        reasons = {"logprobs": None, "finish_reason": finish_reason}
        return self._chunk([{"index": 0, "delta": delta, **reasons}])

    def _chunk(self, choices: list[dict[str, Any]], usage: ChatUsage | None = None) -> str:
        document = {
            "id": self.request_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.chat.model,
            "choices": choices,
            "usage": None if usage is None else usage.model_dump(),
        }
        return server_sent_event(json.dumps(document))


def _usage(answer: Answer) -> ChatUsage:
    usage = answer.written.usage
    num_read = usage.image_tokens + usage.prompt_tokens
    return ChatUsage(
        prompt_tokens=num_read,
        completion_tokens=usage.generated_tokens,
        total_tokens=num_read + usage.generated_tokens,
    )


def _count_steps(check: Any) -> Any:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if next(_steps.get(), None) is None:
            raise RecursionError
        return check(validator, value, instance, schema)

    return counted


def _refuse(keyword: str) -> Any:
    def refuse(*_: Any) -> None:
        raise InvalidRequest(f"{_PARAM} uses {keyword}, which is not supported", _PARAM)

    return refuse


_KEYWORDS = {name: _count_steps(check) for name, check in Draft202012Validator.VALIDATORS.items()}
_KEYWORDS |= {name: _refuse(name) for name in _REFUSED}
_Validator = extend(Draft202012Validator, _KEYWORDS)  # type: ignore[no-untyped-call]


def check_schema(schema: dict[str, Any]) -> None:
    """Raise `InvalidRequest` unless a client's value is a JSON Schema (draft 2020-12)."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problem = f"{_PARAM} is not a JSON Schema: {error.json_path} breaks {error.validator!r}"
        raise InvalidRequest(problem, _PARAM) from error


def _content(answer: Answer, chat: ChatRequest) -> str:
    """Return the text up to the first of `stop`, or the typed result as JSON."""
    if chat.response_format.type != "text":
        return _typed_content(answer, chat.response_format)
    text = answer.written.text
    stops = "|".join(map(re.escape, chat.stop or ()))
    return re.split(stops, text, maxsplit=1)[0] if stops else text


def _finish_reason(answer: Answer, chat: ChatRequest) -> FinishReason:
    text = answer.written.text
    is_stopped = chat.response_format.type == "text" and _content(answer, chat) != text
    return "stop" if is_stopped else answer.written.finish_reason


def _typed_content(answer: Answer, response_format: ResponseFormat) -> str:
    """Return the typed result as JSON; raise `InvalidRequest` if it does not match the schema."""
    result = RESULT.validate_python(answer.result)
    content: str = result.model_dump_json()
    if response_format.json_schema is None:
        return content
    _steps.set(iter(range(_MAX_STEPS)))
    validator = _Validator(response_format.json_schema.schema_, registry=Registry())
    problem = ""
    try:
        validator.validate(result.model_dump(mode="json"))
    except ValidationError as error:
        where = f"{error.json_path} breaks {error.validator!r}"
        form = "its form is that of `result` of POST /v1/predict"
        problem = f"does not match the result of {answer.request.task.id}: {where}; {form}"
    except Unresolvable:
        problem = "refers to something outside itself"
    except RecursionError:
        problem = "has too many alternatives or refers to itself"
    if problem:
        raise InvalidRequest(f"{_PARAM} {problem}", _PARAM)
    return content
