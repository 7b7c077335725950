"""OpenAI's chat completions over the core: a conversation becomes a task, an answer a completion.

POST /v1/chat/completions

The last message asks, follow-up questions are about the latest image. A text is a prompt in the
model's own syntax (`<OD>`, `detect cat`), or else a question. A completion has the generated text,
or the typed result if `response_format` asks for JSON. GET /v1/models also has OpenAI's form.

A client's schema is untrusted: keywords that run its regular expressions are refused, a reference
is followed within the schema only, and alternatives are tried for a bounded number of steps.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import extend
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
from service.openai import wire
from service.schema.rendering import RESULT
from service.validation import validated
from tasks.errors import ParameterError
from tasks.families import FAMILIES
from tasks.prompts import AskedTask
from wire.disconnection import while_connected

_TYPES: dict[ErrorCode, wire.ErrorType] = {
    "unauthorized": "authentication_error",
    "overloaded": "rate_limit_error",
    "internal": "server_error",
    "not_ready": "server_error",
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
    detail = wire.ChatErrorDetail(
        message=error.message,
        type=_TYPES.get(error.code, "invalid_request_error"),
        param=error.param,
        code=error.code,
        request_id=request_id,
    )
    return wire.ChatError(error=detail).model_dump()


OPENAI = Interface("openai", error_form=error_body)


class OpenAiApi:
    """The served endpoints of OpenAI's API."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        return [self._boundary.route("POST", "/v1/chat/completions", self.chat, OPENAI)]

    async def chat(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        body = await self._boundary.read(read_json, request, context)
        chat = validated(wire.ChatRequest, body)
        if not chat.stream:
            return await while_connected(request.receive, complete(chat, core, context))
        await _check_format(chat.response_format)
        events = core.stream(image_of(chat), fields_of(chat, core), context)
        form = _chunk_form(chat, context.request_id)
        return await event_stream(request, context, OPENAI, events, form)


async def complete(
    chat: wire.ChatRequest, core: Core, context: RequestContext
) -> wire.ChatCompletion:
    await _check_format(chat.response_format)
    answer = await core.predict(image_of(chat), fields_of(chat, core), context)
    if chat.response_format.type == "text":
        content = content_of(answer, chat)
    else:
        content = await POSTPROCESSING.run(content_of, answer, chat)
    message = wire.AssistantMessage(content=content)
    return wire.ChatCompletion(
        id=context.request_id,
        created=int(time.time()),
        model=answer.model.id,
        choices=[wire.ChatChoice(message=message, finish_reason=answer.written.finish_reason)],
        usage=_usage(answer),
    )


async def _check_format(response_format: wire.ResponseFormat) -> None:
    if response_format.json_schema is not None:
        await PARSING.run(check_schema, response_format.json_schema.schema_)


def _chunk_form(
    chat: wire.ChatRequest, request_id: str
) -> Callable[[Piece | Answer], Iterator[str]]:
    """Return what renders the events of one stream.

    Typed content, and text that `stop` may cut, is one piece at the end.
    """
    head = {"id": request_id, "object": "chat.completion.chunk", "created": int(time.time())}
    is_one_piece = chat.response_format.type != "text" or bool(chat.stop)
    has_begun = False

    def chunk(choices: list[dict[str, Any]], usage: wire.ChatUsage | None = None) -> str:
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
        yield choice(event.written.finish_reason)
        if chat.stream_options is not None and chat.stream_options.include_usage:
            yield chunk([], _usage(event))
        yield server_sent_event("[DONE]")

    return form


def _usage(answer: Answer) -> wire.ChatUsage:
    usage = answer.written.usage
    num_read = usage.image_tokens + usage.prompt_tokens
    return wire.ChatUsage(
        prompt_tokens=num_read,
        completion_tokens=usage.generated_tokens,
        total_tokens=num_read + usage.generated_tokens,
    )


def image_of(chat: wire.ChatRequest) -> ImageInput:
    for message in reversed(chat.messages):
        if message.role != "user":
            continue
        urls = [part.image_url.url for part in message.content if isinstance(part, wire.ImagePart)]
        if len(urls) > 1:
            raise InvalidRequest(f"a message has {len(urls)} image_url parts; send one", "messages")
        if urls:
            return parse_image(urls[0])
    raise InvalidRequest("no message of the user has an image_url part; send one", "messages")


def fields_of(chat: wire.ChatRequest, core: Core) -> Fields:
    """Return the fields of POST /v1/predict with the meaning of the last message."""
    last = chat.messages[-1]
    if last.role != "user":
        raise InvalidRequest(f"the last message is of {last.role}; it must be of user", "messages")
    texts = [part.text for part in last.content if isinstance(part, wire.TextPart)]
    if len(texts) != 1:
        problem = f"the last message has {len(texts)} text parts; send one"
        raise InvalidRequest(problem, "messages")
    entry = core.models.get(chat.model).entry
    try:
        prompt = FAMILIES[entry.family].read_prompt(entry, texts[0])
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


def content_of(answer: Answer, chat: wire.ChatRequest) -> str:
    """Return the text up to the first of `stop`, or the typed result as JSON."""
    if chat.response_format.type != "text":
        return typed_content(answer, chat.response_format)
    content = answer.written.text
    for stop in chat.stop or ():
        content = content.partition(stop)[0]
    return content


def typed_content(answer: Answer, response_format: wire.ResponseFormat) -> str:
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
