"""The body of OpenAI's chat completions, and the task, fields and image that it asks about.

The last message asks, follow-up questions are about the latest image. A text is a prompt in the
model's own syntax (`<OD>`, `detect cat`), the fields of a request as JSON, or else a question.

Source of names and meaning: OpenAI's API reference, "Create chat completion".
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.errors import InvalidRequest
from service.http.body import parse_image
from service.images.inputs import ImageInput
from service.inference.core import Core, Fields
from service.inference.request_fields import MAX_NAME_CHARS, MAX_NEW_TOKENS, MAX_TEMPERATURE
from service.validation import BOUNDED_BY_BODY, StrictModel
from tasks.errors import ParameterError
from tasks.families import FAMILIES
from tasks.prompts import AskedTask
from tasks.table import MAX_GIVEN_CHARS

_QUESTION = "visual_question_answering"
_CAPTION = re.compile(
    r"(please |can you |could you )?"
    r"(describe|caption|write a caption for|what('s| s| is| do you see) in)"
    r" (this|the) (image|picture|photo)( in detail)?( please)?"
)
_IGNORED = "Accepted and ignored."
_MAX_PARTS = 16  # per message; one image and one text are needed
_MAX_MESSAGES = 64
_MAX_SCHEMA_NODES = 2_000
_MAX_SCHEMA_CHARS = 20_000
_MAX_SCHEMA_LEVELS = 32
_MAX_USER_CHARS = 1000
_MAX_TOOLS = 128  # OpenAI's own limits, as the following
_MAX_STOPS = 4
_MAX_METADATA = 16
_MAX_BIASES = 1000

_Text = Annotated[str, Field(max_length=MAX_GIVEN_CHARS)]


class ImageUrl(StrictModel):
    """URL of the image."""

    url: str = Field(
        description="data: URL of a JPEG, PNG or WebP file; http(s) URL if the service allows it.",
        json_schema_extra=BOUNDED_BY_BODY,
    )
    detail: Literal["auto", "low", "high"] = Field("auto", description=_IGNORED)


class ImagePart(StrictModel):
    """The image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(StrictModel):
    """The text of a message."""

    type: Literal["text"]
    text: str = Field(
        max_length=MAX_GIVEN_CHARS,
        description="A Florence-2 task token, a PaliGemma prompt, JSON of fields, or a question.",
    )


def _with_known_type(part: object) -> object:
    # pydantic's own message would repeat a type of any length.
    if isinstance(part, dict) and part.get("type") not in ("image_url", "text"):
        raise ValueError("type must be image_url or text")
    return part


Part = Annotated[
    ImagePart | TextPart, Field(discriminator="type"), BeforeValidator(_with_known_type)
]
_Parts = Annotated[list[Part], Field(max_length=_MAX_PARTS)]


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class ChatMessage(StrictModel):
    """A message; the last one is the user's and asks. Models have no instructions or memory."""

    role: Literal["user", "system", "developer", "assistant"] = Field(
        description="Only messages of the user are read."
    )
    content: Annotated[_Parts, BeforeValidator(_as_parts, json_schema_input_type=_Text | _Parts)]
    name: str | None = Field(None, max_length=MAX_NAME_CHARS, description=_IGNORED)
    # clients send an answer's message back as it was
    refusal: None = Field(None, description=_IGNORED)


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    num_values = _num_values(schema, _MAX_SCHEMA_LEVELS)
    if num_values > _MAX_SCHEMA_NODES or len(json.dumps(schema)) > _MAX_SCHEMA_CHARS:
        limits = f"{_MAX_SCHEMA_NODES:,} values, {_MAX_SCHEMA_CHARS:,} characters"
        raise ValueError(f"a schema may have {limits} and {_MAX_SCHEMA_LEVELS} levels")
    return schema


def _num_values(value: object, max_levels: int) -> float:
    """Return the number of a value's nodes; infinite above the maximum of levels."""
    if max_levels == 0:
        return math.inf
    children: Iterable[object] = ()
    if isinstance(value, dict):
        children = value.values()
    elif isinstance(value, list):
        children = value
    return 1 + sum(_num_values(child, max_levels - 1) for child in children)


class TypedSchema(StrictModel):
    """The schema that the typed result must match."""

    name: str = Field(max_length=MAX_NAME_CHARS, description=_IGNORED)
    description: str | None = Field(None, max_length=MAX_GIVEN_CHARS, description=_IGNORED)
    schema_: Annotated[dict[str, Any], AfterValidator(_bounded)] = Field(
        alias="schema",
        description=(
            f"JSON Schema of at most {_MAX_SCHEMA_NODES:,} values, {_MAX_SCHEMA_CHARS:,} characters"
            f" and {_MAX_SCHEMA_LEVELS} levels, without regular expressions and remote references."
        ),
        json_schema_extra={"maxProperties": _MAX_SCHEMA_NODES},
    )
    strict: bool | None = Field(None, description=_IGNORED)


class ResponseFormat(StrictModel):
    """The form of the content: the generated text, or the typed result as JSON."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: TypedSchema | None = Field(
        None, description="With type json_schema: what the result must match, else it is a 400."
    )

    @model_validator(mode="after")
    def _has_a_schema_if_named(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with type json_schema, and only with it")
        return self


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
_Stops = Annotated[list[_Stop], Field(max_length=_MAX_STOPS)]
_StopTexts = Annotated[_Stops, BeforeValidator(_as_list, json_schema_input_type=_Stop | _Stops)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Tool = Annotated[dict[str, Any], Field(json_schema_extra=BOUNDED_BY_BODY)]


class ChatRequest(StrictModel):
    """Body of POST /v1/chat/completions."""

    model: str = Field(max_length=MAX_NAME_CHARS, description="Model id; see GET /v1/models.")
    messages: list[ChatMessage] = Field(
        min_length=1,
        max_length=_MAX_MESSAGES,
        description="A conversation; its last message is the user's and has the text.",
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
    n: int = Field(1, ge=1, le=1)
    stop: _StopTexts | None = Field(
        None, description="Texts that cut the generated text, which then streams as one piece."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat = ResponseFormat(type="text")
    user: str | None = Field(None, max_length=_MAX_USER_CHARS, description=_IGNORED)
    presence_penalty: _Penalty | None = Field(None, description=_IGNORED)
    frequency_penalty: _Penalty | None = Field(None, description=_IGNORED)
    logprobs: bool | None = Field(None, description=_IGNORED)
    top_logprobs: int | None = Field(None, ge=0, le=20, description=_IGNORED)
    logit_bias: dict[str, float] | None = Field(None, max_length=_MAX_BIASES, description=_IGNORED)
    metadata: dict[str, str] | None = Field(None, max_length=_MAX_METADATA, description=_IGNORED)
    store: bool | None = Field(None, description=_IGNORED)
    tools: list[_Tool] = Field(
        [], max_length=_MAX_TOOLS, description=f"{_IGNORED} The models call none."
    )
    tool_choice: Literal["auto", "none"] = Field("auto", description=_IGNORED)
    parallel_tool_calls: bool = Field(True, description=_IGNORED)


def read_image(chat: ChatRequest) -> ImageInput:
    for message in reversed(chat.messages):
        if message.role != "user":
            continue
        urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        if len(urls) > 1:
            raise InvalidRequest(f"a message has {len(urls)} image_url parts; send one", "messages")
        if urls:
            return parse_image(urls[0])
    raise InvalidRequest("no message of the user has an image_url part; send one", "messages")


def read_fields(chat: ChatRequest, core: Core) -> Fields:
    last = chat.messages[-1]
    if last.role != "user":
        raise InvalidRequest(f"the last message is of {last.role}; it must be of user", "messages")
    texts = [part.text for part in last.content if isinstance(part, TextPart)]
    if len(texts) != 1:
        raise InvalidRequest(f"the last message has {len(texts)} text parts; send one", "messages")
    entry = core.models.get(chat.model).entry
    try:
        prompt = _read_json_prompt(texts[0]) or FAMILIES[entry.family].read_prompt(entry, texts[0])
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    prompt = prompt or _read_words(texts[0], entry.task_ids)
    fields = {
        "task": prompt.task_id,
        **prompt.values,
        "model": chat.model,
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "seed": chat.seed,
        "max_new_tokens": chat.max_completion_tokens or chat.max_tokens,
    }
    shares = prompt.region_shares
    if shares is None:
        return fields

    def with_region(size_wh: tuple[int, int]) -> Mapping[str, object]:
        region = [share * side for share, side in zip(shares, size_wh * 2, strict=True)]
        return fields | {"region": region}

    return with_region


def _read_json_prompt(text: str) -> AskedTask | None:
    """Return the task of a JSON object with fields of POST /v1/predict."""
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    task_id = fields.pop("task", None)
    return AskedTask(task_id, fields) if isinstance(task_id, str) else None


def _read_words(text: str, task_ids: Collection[str]) -> AskedTask:
    """Return a question, or a caption where the model has no questions and the text means one."""
    words = " ".join(re.findall(r"[\w']+", text.casefold()))
    if _QUESTION not in task_ids and _CAPTION.fullmatch(words):
        return AskedTask("captioning")
    return AskedTask(_QUESTION, {"question": text})
