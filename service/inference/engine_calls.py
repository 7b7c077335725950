"""Calls to an engine of OpenAI's protocol, which answers for a model in place of a runner.

A call is one streamed chat completion about one image. Its text, the log-probabilities of its
tokens and its counts become the sequence that a runner would have written. The operator names the
engine, but its answers are not trusted: the process of outbound calls reads them, redirects are not
followed, and no message has the key. Cancellation closes the connection.
"""

import asyncio
import base64
import io
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from opentelemetry.trace import SpanKind
from PIL import Image

from imaging.containers import read_container
from service.admission.threads import DECODING
from service.errors import InvalidRequest, NotReady, Overloaded, ServiceError
from service.images.decoding import ImageView, LazyImage
from service.inference.request_fields import GenerationFields
from service.inference.runner_calls import OnText, WrittenAnswers
from service.outbound.messages import (
    CallError,
    HttpCall,
    OutboundCalls,
    ResponseHead,
)
from service.settings import SettingsError
from service.telemetry.logs import hide_in_logs, without_secrets
from tasks.catalog import Engine
from wire.pixels import Pixels
from wire.runner_messages import FoundFeatures, Written
from wire.telemetry.tracing import PROPAGATOR, span

logger = logging.getLogger(__name__)

_DEFAULT_TOKENS = 1024
_MAX_MESSAGE_CHARS = 200  # of an engine's error
_MAX_LOSSLESS_PIXELS = 8_000_000
_CHECK_S = 15.0  # the process of outbound calls starts meanwhile
_RETRY_PAUSE_S = 0.2
_PLAIN_S = 600.0  # an engine that refused extras is sent them again, as the request may be why
_AT_ITS_SIZE = Image.Resampling.NEAREST


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionCall:
    """A chat completion about one image; `schema`: the JSON Schema of its text, or None."""

    prompt: str
    schema: Mapping[str, object] | None
    options: GenerationFields
    timeout_s: float


@dataclass(slots=True)
class _Progress:
    """Sends the text of an answer as it comes, and notes when it begins."""

    on_text: OnText | None
    first_text_s: float | None = None  # time.monotonic()

    def receive(self, text: str) -> None:
        self.first_text_s = self.first_text_s or time.monotonic()
        if self.on_text is not None:
            self.on_text(text)


def engine_headers(model_id: str, engine: Engine) -> dict[str, str]:
    """Return the headers with the key; raise `SettingsError` if its variable is not set."""
    if (name := engine.api_key_env) is None:
        return {}
    key = os.environ.get(name, "").strip()
    if not key:
        raise SettingsError(f"{model_id}: api_key_env names {name}, which is not set")
    hide_in_logs(key)
    return {"Authorization": f"Bearer {key}"}


class EngineClient:
    """Calls to the engine of one model, through the process of outbound calls."""

    def __init__(self, model_id: str, engine: Engine, calls: OutboundCalls) -> None:
        """Raise `SettingsError` if the variable of the key is not set."""
        self._model_id = model_id
        self._name = f"the engine of {model_id}"
        self._engine = engine
        self._calls = calls
        self._url = engine.url.rstrip("/")
        self._headers = engine_headers(model_id, engine)
        # until then no schema, log-probabilities and options of the stream; time.monotonic()
        self._plain_until_s = -math.inf

    async def check(self) -> None:
        url = f"{self._url}/models"
        call = HttpCall(kind="document", url=url, headers=self._headers, timeout_s=_CHECK_S)
        is_listed = False
        try:
            async with asyncio.timeout(_CHECK_S), aclosing(self._calls.run(call)) as events:
                async for event in events:
                    if isinstance(event, ResponseHead):
                        self._check_status(event)
                    elif isinstance(event, bytes):
                        is_listed = json.dumps(self._engine.model).encode() in event
        except (CallError, TimeoutError, ServiceError) as error:
            kind = type(error).__name__
            logger.warning("%s is not ready at %s: %s %s", self._name, url, kind, error)
            return
        if not is_listed:
            logger.warning("%s does not list %s at %s", self._name, self._engine.model, url)

    async def write(
        self, image: LazyImage, completion: CompletionCall, on_text: OnText | None = None
    ) -> WrittenAnswers:
        """Return the answer to the prompt; raise `ServiceError`."""
        if (completion.options.num_beams or 1) > 1:
            raise InvalidRequest(f"{self._model_id} supports num_beams 1 only", "num_beams")
        start_s = time.monotonic()
        with span("preprocess"):
            url = await data_url(image)
        sent_s = time.monotonic()
        progress = _Progress(on_text)
        with span("POST /chat/completions", kind=SpanKind.CLIENT):
            written = await self._complete(completion, url, progress)
        end_s = time.monotonic()
        first_s = progress.first_text_s or end_s
        written.prefill_s = first_s - sent_s
        written.decode_s = end_s - first_s
        return WrittenAnswers(
            (written,),
            FoundFeatures(outcome="miss"),
            image_tokens=0,  # the engine counts them as the prompt's
            preprocess_s=sent_s - start_s,
            queue_s=0.0,
            prefill_s=written.prefill_s,
            decode_s=written.decode_s,
        )

    def _body(self, completion: CompletionCall, image_url: str) -> dict[str, Any]:
        options = completion.options
        content = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": completion.prompt},
        ]
        body = {
            "model": self._engine.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stream": True,
        }
        if options.seed is not None:
            body["seed"] = options.seed
        # another Diptych has its checkpoint's own maximum
        if self._engine.dialect != "diptych" or options.max_new_tokens is not None:
            body["max_tokens"] = options.max_new_tokens or _DEFAULT_TOKENS
        return body

    def _extras(self, schema: Mapping[str, object] | None) -> dict[str, Any]:
        """Return the fields that some engines refuse."""
        extras: dict[str, Any] = {"logprobs": True, "stream_options": {"include_usage": True}}
        if self._engine.dialect == "diptych":
            extras["response_format"] = {"type": "json_object"}
        elif schema is not None:
            named_schema = {"name": "objects", "schema": schema}
            extras["response_format"] = {"type": "json_schema", "json_schema": named_schema}
        return extras

    async def _complete(
        self, completion: CompletionCall, image_url: str, progress: _Progress
    ) -> Written:
        body = self._body(completion, image_url)
        is_plain = time.monotonic() < self._plain_until_s
        extras = {} if is_plain else self._extras(completion.schema)
        has_failed = False
        while True:
            try:
                outcome = await self._receive(body | extras, completion.timeout_s, progress)
            except CallError as error:
                is_unanswered = error.reason == "unreachable" and progress.first_text_s is None
                if has_failed or not is_unanswered:
                    raise self._failure(error) from error
                has_failed = True
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            if isinstance(outcome, Written):
                if not extras and not is_plain:
                    self._plain_until_s = time.monotonic() + _PLAIN_S
                    problem = "refused a schema and logprobs: no scores for"
                    logger.warning("%s %s %g s", self._name, problem, _PLAIN_S)
                return outcome
            if not extras:
                raise self._refusal(outcome.message)
            extras = {}

    async def _receive(
        self, body: Mapping[str, Any], timeout_s: float, progress: _Progress
    ) -> Written | ResponseHead:
        """Return a completion, or the response of an engine that refuses the request."""
        headers = {"Content-Type": "application/json", **self._headers}
        PROPAGATOR.inject(headers)
        url = f"{self._url}/chat/completions"
        call = HttpCall(kind="completion", url=url, headers=headers, timeout_s=timeout_s)
        async with aclosing(self._calls.run(call, json.dumps(body).encode())) as events:
            async for event in events:
                if isinstance(event, Written):
                    return event
                if isinstance(event, bytes):
                    progress.receive(event.decode())
                elif event.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
                    return event
                else:
                    self._check_status(event)
        raise NotReady(f"{self._name} sent no chat completion")

    def _check_status(self, response: ResponseHead) -> None:
        match response.status:
            case HTTPStatus.OK:
                return
            case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
                raise Overloaded(f"{self._name} is overloaded", response.retry_after_s)
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                variable = self._engine.api_key_env or "api_key_env, which is not set"
                problem = f"refuses the operator's key, from {variable}"
            case HTTPStatus.NOT_FOUND:
                problem = f"has no model {self._engine.model}, or another url"
            case _:
                problem = "answers"
        raise NotReady(f"{self._name} {problem}: status {response.status}")

    def _failure(self, error: CallError) -> ServiceError:
        match error.reason:
            case "unreachable":
                return NotReady(f"{self._name} closed the connection or cannot be reached")
            case "rejected":
                return self._refusal(error.message)
            case "broke_off":
                return NotReady(f"{self._name} broke off its answer: {_shown(error.message)}")
            case "lost":
                return NotReady(f"the process that calls {self._name} ended; retry the request")
            case _:
                logger.warning("%s: %s", self._name, error)
                return NotReady(f"{self._name} broke off its answer, or sent no chat completion")

    def _refusal(self, message: str) -> InvalidRequest:
        return InvalidRequest(f"{self._name} refuses the request: {_shown(message)}")


def _shown(message: str) -> str:
    """Return the message of an engine's error, bounded and without keys."""
    return without_secrets(message)[:_MAX_MESSAGE_CHARS]


async def data_url(image: LazyImage) -> str:
    """Return an image as a data: URL: an upright JPEG as it is, others as they are decoded."""
    container = read_container(image.data)
    is_upright = container.format == "JPEG" and container.orientation in (None, 1)
    if is_upright and not isinstance(image, ImageView):
        return await DECODING.run(_encoded, image.data)
    return await DECODING.run(_encoded, await image.resized(image.header.size_wh, _AT_ITS_SIZE))


def _encoded(image: bytes | Pixels) -> str:
    media_type = "image/jpeg"
    if not isinstance(image, bytes):
        is_small = image.shape[0] * image.shape[1] <= _MAX_LOSSLESS_PIXELS
        media_type = "image/png" if is_small else media_type
        file = io.BytesIO()
        picture = Image.fromarray(image)
        if is_small:
            picture.save(file, "PNG", compress_level=1)
        else:
            picture.save(file, "JPEG", quality=95, subsampling=0)
        image = file.getvalue()
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"
