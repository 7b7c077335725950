"""OpenAI's chat completions over the core: a conversation becomes a task, an answer a completion.

The last message asks, follow-up questions are about the latest image. A text is a prompt in the
model's own syntax (`<OD>`, `detect cat`), the fields of a request as JSON, or else a question. A
completion has the generated text, or the typed result if `response_format` asks for JSON. GET
/v1/models also has OpenAI's form.

A client's schema is untrusted: keywords that run its regular expressions are refused, a reference
is followed within the schema only, and alternatives are tried for a bounded number of steps.

Source of names and meaning: OpenAI's API reference, "Create chat completion" and "The chat
completion chunk object".
"""

import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator
from referencing import Registry
from referencing.exceptions import Unresolvable
from starlette.requests import Request
from starlette.routing import Route

from service.admission.places import RequestContext
from service.admission.threads import PARSING, POSTPROCESSING
from service.errors import ErrorCode, InvalidRequest, ServiceError
from service.http.body import parse_image, read_json
from service.http.boundary import Body, Interface, RestBoundary, event_stream, server_sent_event
from service.images.inputs import ImageInput
from service.inference.core import Core, Fields
from service.inference.prediction import Answer, Piece
from service.inference.request_fields import MAX_NAME_CHARS, MAX_NEW_TOKENS, MAX_TEMPERATURE
from service.schema.rendering import RESULT
from service.validation import BOUNDED_BY_BODY, StrictModel, validated
from tasks.errors import ParameterError
from tasks.families import FAMILIES
from tasks.prompts import AskedTask
from tasks.table import MAX_GIVEN_CHARS
from wire.disconnection import while_connected
from wire.runner_messages import FinishReason

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


_TYPES: dict[ErrorCode, ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
    "runner_failed": "server_error",
    "deadline_exceeded": "server_error",
}

_QUESTION = "visual_question_answering"
_CAPTION = re.compile(
    r"(please |can you |could you )?"
    r"(describe|caption|write a caption for|what('s| s| is| do you see) in)"
    r" (this|the) (image|picture|photo)( in detail)?( please)?"
)
_PARAM = "response_format.json_schema.schema"
_REFUSED = ("pattern", "patternProperties", "format", "$dynamicRef")
_MAX_STEPS = 20_000
_steps: ContextVar[Iterator[int]] = ContextVar("steps")


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    detail = ChatErrorDetail(
        message=error.message,
        type=_TYPES.get(error.code, "invalid_request_error"),
        param=error.param,
        code=error.code,
        request_id=request_id,
    )
    return ChatError(error=detail).model_dump()


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
        events = core.stream(image_of(chat), fields_of(chat, core), context)
        form = _chunk_form(chat, context.request_id)
        return await event_stream(request, context, OPENAI, events, form)


async def complete(chat: ChatRequest, core: Core, context: RequestContext) -> ChatCompletion:
    await _check_format(chat.response_format)
    answer = await core.predict(image_of(chat), fields_of(chat, core), context)
    if chat.response_format.type == "text":
        content = content_of(answer, chat)
    else:
        content = await POSTPROCESSING.run(content_of, answer, chat)
    message = AssistantMessage(content=content)
    return ChatCompletion(
        id=context.request_id,
        created=int(time.time()),
        model=answer.model.id,
        choices=[ChatChoice(message=message, finish_reason=_finish_reason(answer, chat))],
        usage=_usage(answer),
    )


async def _check_format(response_format: ResponseFormat) -> None:
    if response_format.json_schema is not None:
        await PARSING.run(check_schema, response_format.json_schema.schema_)


def _chunk_form(chat: ChatRequest, request_id: str) -> Callable[[Piece | Answer], Iterator[str]]:
    """Return what renders the events of one stream.

    Typed content, and text that `stop` may cut, is one piece at the end.
    """
    head = {"id": request_id, "object": "chat.completion.chunk", "created": int(time.time())}
    is_one_piece = chat.response_format.type != "text" or bool(chat.stop)
    has_begun = False

    def chunk(choices: list[dict[str, Any]], usage: ChatUsage | None = None) -> str:
        document = {**head, "model": chat.model, "choices": choices}
        document["usage"] = None if usage is None else usage.model_dump()
        return server_sent_event(json.dumps(document))

    def choice(finish_reason: str | None = None, **delta: str) -> str:
        reasons = {"logprobs": None, "finish_reason": finish_reason}
        return chunk([{"index": 0, "delta": delta, **reasons}])

    def form(event: Piece | Answer) -> Iterator[str]:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            yield choice(role="assistant", content="")
        if isinstance(event, Piece):
            if not is_one_piece:
                yield choice(content=event.text)
            return
        if is_one_piece:
            yield choice(content=content_of(event, chat))
        yield choice(_finish_reason(event, chat))
        if chat.stream_options is not None and chat.stream_options.include_usage:
            yield chunk([], _usage(event))
        yield server_sent_event("[DONE]")

    return form


def _usage(answer: Answer) -> ChatUsage:
    usage = answer.written.usage
    num_read = usage.image_tokens + usage.prompt_tokens
    return ChatUsage(
        prompt_tokens=num_read,
        completion_tokens=usage.generated_tokens,
        total_tokens=num_read + usage.generated_tokens,
    )


def image_of(chat: ChatRequest) -> ImageInput:
    for message in reversed(chat.messages):
        if message.role != "user":
            continue
        urls = [part.image_url.url for part in message.content if isinstance(part, ImagePart)]
        if len(urls) > 1:
            raise InvalidRequest(f"a message has {len(urls)} image_url parts; send one", "messages")
        if urls:
            return parse_image(urls[0])
    raise InvalidRequest("no message of the user has an image_url part; send one", "messages")


def fields_of(chat: ChatRequest, core: Core) -> Fields:
    last = chat.messages[-1]
    if last.role != "user":
        raise InvalidRequest(f"the last message is of {last.role}; it must be of user", "messages")
    texts = [part.text for part in last.content if isinstance(part, TextPart)]
    if len(texts) != 1:
        raise InvalidRequest(f"the last message has {len(texts)} text parts; send one", "messages")
    entry = core.models.get(chat.model).entry
    try:
        prompt = _asked_in_json(texts[0]) or FAMILIES[entry.family].read_prompt(entry, texts[0])
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    prompt = prompt or _asked_in_words(texts[0], entry.task_ids)
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


def _asked_in_json(text: str) -> AskedTask | None:
    """Return the task of a JSON object with fields of POST /v1/predict."""
    if not text.startswith("{"):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    task_id = fields.pop("task", None)
    return AskedTask(task_id, fields) if isinstance(task_id, str) else None


def _asked_in_words(text: str, task_ids: Collection[str]) -> AskedTask:
    """Return a question, or a caption where the model has no questions and the text means one."""
    words = " ".join(re.findall(r"[\w']+", text.casefold()))
    if _QUESTION not in task_ids and _CAPTION.fullmatch(words):
        return AskedTask("captioning")
    return AskedTask(_QUESTION, {"question": text})


def _counted(check: Any) -> Any:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if next(_steps.get(), None) is None:
            raise RecursionError
        return check(validator, value, instance, schema)

    return counted


def _refused(keyword: str) -> Any:
    def refuse(*_: Any) -> None:
        raise InvalidRequest(f"{_PARAM} uses {keyword}, which is not supported", _PARAM)

    return refuse


_KEYWORDS = {name: _counted(check) for name, check in Draft202012Validator.VALIDATORS.items()}
_KEYWORDS |= {name: _refused(name) for name in _REFUSED}
_Validator = extend(Draft202012Validator, _KEYWORDS)  # type: ignore[no-untyped-call]


def check_schema(schema: dict[str, Any]) -> None:
    """Raise `InvalidRequest` unless a client's value is a JSON Schema (draft 2020-12)."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        problem = f"{_PARAM} is not a JSON Schema: {error.json_path} breaks {error.validator!r}"
        raise InvalidRequest(problem, _PARAM) from error


def content_of(answer: Answer, chat: ChatRequest) -> str:
    """Return the text up to the first of `stop`, or the typed result as JSON."""
    if chat.response_format.type != "text":
        return typed_content(answer, chat.response_format)
    text = answer.written.text
    stops = "|".join(map(re.escape, chat.stop or ()))
    return re.split(stops, text, maxsplit=1)[0] if stops else text


def _finish_reason(answer: Answer, chat: ChatRequest) -> FinishReason:
    text = answer.written.text
    is_stopped = chat.response_format.type == "text" and content_of(answer, chat) != text
    return "stop" if is_stopped else answer.written.finish_reason


def typed_content(answer: Answer, response_format: ResponseFormat) -> str:
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
