"""The served subset of OpenAI's chat completions: a message of one image and one text.

Source of names and meaning: OpenAI's API reference, "Create chat completion" and "The chat
completion chunk object".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.errors import ErrorCode
from service.inference.request_fields import MAX_NAME_CHARS, MAX_NEW_TOKENS, MAX_TEMPERATURE
from service.validation import BOUNDED_BY_BODY
from tasks.parameter_kinds import MAX_GIVEN_CHARS

_IGNORED = "Accepted and ignored."
_MAX_PARTS = 16  # per message; one image and one text are needed
_MAX_USER_CHARS = 1000


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ImageUrl(_Given):
    """URL of the image."""

    url: str = Field(
        description="data: URL of a JPEG, PNG or WebP file; http(s) URL if the service allows it.",
        json_schema_extra=BOUNDED_BY_BODY,
    )
    detail: Literal["auto", "low", "high"] = Field("auto", description=_IGNORED)


class ImagePart(_Given):
    """The image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(_Given):
    """The text of a message."""

    type: Literal["text"]
    text: str = Field(
        max_length=MAX_GIVEN_CHARS,
        description="A Florence-2 task token, a PaliGemma prompt, or a question.",
    )


def _with_known_type(part: object) -> object:
    # pydantic's own message would repeat a type of any length.
    if isinstance(part, dict) and part.get("type") not in ("image_url", "text"):
        raise ValueError("type must be image_url or text")
    return part


Part = Annotated[
    ImagePart | TextPart, Field(discriminator="type"), BeforeValidator(_with_known_type)
]


class ChatMessage(_Given):
    """The user's message."""

    role: Literal["user"]
    content: list[Part] = Field(max_length=_MAX_PARTS)


class StreamOptions(_Given):
    """Options of a stream."""

    include_usage: bool = False


class ChatRequest(_Given):
    """Body of POST /v1/chat/completions."""

    model: str = Field(max_length=MAX_NAME_CHARS, description="Model id; see GET /v1/models.")
    messages: list[ChatMessage] = Field(
        min_length=1, max_length=1, description="Exactly one message."
    )
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description="Alias of max_tokens; takes precedence."
    )
    temperature: float = Field(
        0.0, ge=0, le=MAX_TEMPERATURE, description="0, the default, is greedy decoding."
    )
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(None, max_length=_MAX_USER_CHARS, description=_IGNORED)


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

    index: Literal[0] = 0
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


class ChunkChoice(BaseModel):
    """A piece of the only choice."""

    index: Literal[0] = 0
    delta: dict[str, Any]
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """One event of a stream; the last event is [DONE]."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None


ErrorType = Literal[
    "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
]


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
