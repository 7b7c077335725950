"""Calls to an engine of OpenAI's protocol, which answers for a model in place of a runner.

A call is one streamed chat completion about one image. Its text, the log-probabilities of its
tokens and its counts become the sequence that a runner would have written. The operator names the
engine, but its answers are not trusted: bytes and tokens are bounded, redirects are not followed,
and no message has the key. Cancellation closes the connection.

Source of names and meaning: OpenAI's API reference, "Create chat completion" and "The chat
completion chunk object".
"""

import asyncio
import base64
import codecs
import io
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import Any

import aiohttp
from opentelemetry.trace import SpanKind
from PIL import Image

from imaging.containers import read_container
from service.admission.threads import DECODING
from service.errors import InvalidRequest, NotReady, Overloaded, ServiceError
from service.images.decoding import ImageView, LazyImage
from service.inference.runner_calls import OnText, RunnerClient, WrittenAnswers
from service.settings import SettingsError
from tasks.catalog import Engine
from wire.artifacts.manifest import Manifest
from wire.pixels import Pixels
from wire.runner_messages import FoundFeatures, SequenceSpec, Written
from wire.telemetry.tracing import PROPAGATOR, span

logger = logging.getLogger(__name__)

_DEFAULT_TOKENS = 1024
_MAX_RESPONSE_BYTES = 4_000_000
_MAX_ANSWER_CHARS = 300_000
_MAX_TOKENS = 2**31 - 1  # gRPC's int32
_MAX_MESSAGE_CHARS = 200  # of an engine's error
_MAX_ERROR_BYTES = 20_000
_MAX_LOSSLESS_PIXELS = 8_000_000
_CONNECT_S = 5.0
_RETRY_PAUSE_S = 0.2
_PLAIN_S = 600.0  # an engine that refused extras is sent them again, as the request may be why
_DEFAULT_RETRY_S = 5.0
_MAX_RETRY_S = 60.0
_KEEP_ALIVE_S = 4.0
_AT_ITS_SIZE = Image.Resampling.NEAREST


@dataclass(slots=True)
class _Completion:
    """The received part of a chat completion."""

    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0
    token_bytes: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    first_text_s: float | None = None  # time.monotonic()

    def receive(self, chunk: Mapping[str, Any]) -> str:
        """Add a chunk or a whole completion; return its text. Raise ValueError for another form."""
        try:
            if usage := chunk.get("usage"):
                self.num_prompt_tokens = _count(usage.get("prompt_tokens"))
                self.num_generated_tokens = _count(usage.get("completion_tokens"))
            choices = chunk.get("choices")
            return self._receive_choice(choices[0]) if choices else ""
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{error!r}") from error

    def _receive_choice(self, choice: Mapping[str, Any]) -> str:
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        logprobs = choice.get("logprobs") or {}
        for token in logprobs.get("content") or ():
            self.token_bytes.append(bytes(list(token.get("bytes") or token["token"].encode())))
            logprob = token["logprob"]
            self.logprobs.append(math.nan if logprob is None else float(logprob))
        message = choice.get("delta") or choice.get("message") or {}
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is not a string")
        if text:
            text = text.encode(errors="replace").decode()  # no half of a surrogate pair
            self.num_chars += len(text)
            if self.num_chars > _MAX_ANSWER_CHARS:
                raise ValueError(f"more than {_MAX_ANSWER_CHARS} characters")
            self.pieces.append(text)
            self.first_text_s = self.first_text_s or time.monotonic()
        return text

    def token_ends(self) -> list[int]:
        """Return the offset in the text after each token; none if the tokens are not the text's."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = list(map(decoder.decode, self.token_bytes))
        # some engines also list the token that ended the text
        is_whole = "".join(texts).startswith("".join(self.pieces))
        if not is_whole or not all(map(math.isfinite, self.logprobs)):
            return []
        return list(accumulate(map(len, texts)))

    def written(self, sent_s: float) -> Written:
        """Return the sequence as a runner would have written it; `sent_s`: time.monotonic()."""
        end_s = time.monotonic()
        first_s = self.first_text_s or end_s
        ends = self.token_ends()
        return Written(
            text="".join(self.pieces),
            token_ends=ends,
            logprobs=[min(0.0, value) for value in self.logprobs] if ends else [],
            finish_reason="length" if self.finish_reason == "length" else "stop",
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens or len(self.logprobs),
            queue_s=0.0,
            prefill_s=first_s - sent_s,
            decode_s=end_s - first_s,
        )


class EngineClient:
    """Calls to the engine of one model."""

    def __init__(self, model_id: str, engine: Engine) -> None:
        """Raise `SettingsError` if the variable of the key is not set."""
        self._model_id = model_id
        self._name = f"the engine of {model_id}"
        self._engine = engine
        self._url = engine.url.rstrip("/")
        self._headers: dict[str, str] = {}
        self._key = ""
        if (name := engine.api_key_env) is not None:
            self._key = os.environ.get(name, "").strip()
            if not self._key:
                raise SettingsError(f"{model_id}: api_key_env names {name}, which is not set")
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._session: aiohttp.ClientSession | None = None
        # until then no schema, log-probabilities and options of the stream; time.monotonic()
        self._plain_until_s = -math.inf

    async def is_ready(self) -> bool:
        """Return True: an engine that is down is an error of its model's answers alone."""
        return True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def check(self) -> None:
        url = f"{self._url}/models"
        try:
            got = self._opened().get(url, allow_redirects=False)
            async with asyncio.timeout(_CONNECT_S), got as response:
                self._check_status(response)
                body = await _body(response, _MAX_RESPONSE_BYTES)
            is_listed = json.dumps(self._engine.model).encode() in body
        except (aiohttp.ClientError, TimeoutError, ServiceError) as error:
            # its repr may have the headers of the request, and the key
            kind = type(error).__name__
            logger.warning("%s is not ready at %s: %s %s", self._name, url, kind, error)
            return
        if not is_listed:
            logger.warning("%s does not list %s at %s", self._name, self._engine.model, url)

    async def write(
        self,
        manifest: Manifest,  # noqa: ARG002  # a runner's
        image: LazyImage,
        specs: Sequence[SequenceSpec],
        on_text: OnText | None = None,
    ) -> WrittenAnswers:
        """Return the answer to the only prompt; raise `ServiceError`."""
        (spec,) = specs
        if (spec.num_beams or 1) > 1:
            raise InvalidRequest(f"{self._model_id} supports num_beams 1 only", "num_beams")
        start_s = time.monotonic()
        with span("preprocess"):
            url = await data_url(image)
        sent_s = time.monotonic()
        with span("POST /chat/completions", kind=SpanKind.CLIENT):
            completion = await self._completion(spec, url, on_text)
        written = completion.written(sent_s)
        return WrittenAnswers(
            (written,),
            FoundFeatures(outcome="miss"),
            image_tokens=0,  # the engine counts them as the prompt's
            preprocess_s=sent_s - start_s,
            queue_s=0.0,
            prefill_s=written.prefill_s,
            decode_s=written.decode_s,
        )

    def _body(self, spec: SequenceSpec, image_url: str) -> dict[str, Any]:
        text = "".join(segment for segment, _ in spec.segments)
        content = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": text},
        ]
        body = {
            "model": self._engine.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": spec.temperature,
            "top_p": spec.top_p,
            "stream": True,
        }
        if spec.seed is not None:
            body["seed"] = spec.seed
        # another Diptych has its checkpoint's own maximum
        if self._engine.dialect != "diptych" or spec.max_new_tokens is not None:
            body["max_tokens"] = spec.max_new_tokens or _DEFAULT_TOKENS
        return body

    def _extras(self, spec: SequenceSpec) -> dict[str, Any]:
        """Return the fields that some engines refuse."""
        extras: dict[str, Any] = {"logprobs": True, "stream_options": {"include_usage": True}}
        if self._engine.dialect == "diptych":
            extras["response_format"] = {"type": "json_object"}
        elif spec.grammar is not None:
            schema = {"name": "objects", "schema": json.loads(spec.grammar)}
            extras["response_format"] = {"type": "json_schema", "json_schema": schema}
        return extras

    async def _completion(
        self, spec: SequenceSpec, image_url: str, on_text: OnText | None
    ) -> _Completion:
        body = self._body(spec, image_url)
        is_plain = time.monotonic() < self._plain_until_s
        extras = {} if is_plain else self._extras(spec)
        has_failed = False
        while True:
            completion = _Completion()
            try:
                refusal = await self._receive(body | extras, completion, on_text)
            except aiohttp.ClientConnectionError as error:
                if has_failed or completion.pieces:
                    raise NotReady(
                        f"{self._name} closed the connection or cannot be reached"
                    ) from error
                has_failed = True
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            except (aiohttp.ClientError, ValueError, RecursionError) as error:
                logger.warning("%s: %s", self._name, error)  # its repr may have the key
                raise NotReady(
                    f"{self._name} broke off its answer, or sent no chat completion"
                ) from error
            if refusal is None:
                if not extras and not is_plain:
                    self._plain_until_s = time.monotonic() + _PLAIN_S
                    problem = "refused a schema and logprobs: no scores for"
                    logger.warning("%s %s %g s", self._name, problem, _PLAIN_S)
                return completion
            if not extras:
                raise InvalidRequest(f"{self._name} refuses the request: {refusal}")
            extras = {}

    async def _receive(
        self, body: Mapping[str, Any], completion: _Completion, on_text: OnText | None
    ) -> str | None:
        """Receive a completion; return the message of an engine that refuses the request."""
        headers: dict[str, str] = {}
        PROPAGATOR.inject(headers)
        url = f"{self._url}/chat/completions"
        posted = self._opened().post(url, json=body, headers=headers, allow_redirects=False)
        async with posted as response:
            if response.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
                return self._message(await _body(response, _MAX_ERROR_BYTES))
            self._check_status(response)
            async for chunk in _chunks(response):
                if chunk.get("error"):
                    message = self._message(chunk)
                    if completion.pieces:
                        raise NotReady(f"{self._name} broke off its answer: {message}")
                    raise InvalidRequest(f"{self._name} refuses the request: {message}")
                if (text := completion.receive(chunk)) and on_text is not None:
                    on_text(text)
        if completion.finish_reason is None:
            raise ValueError("the stream ended before the answer was complete")
        return None

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        match response.status:
            case HTTPStatus.OK:
                return
            case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
                after_s = response.headers.get("Retry-After", "")
                retry_after_s = float(after_s) if after_s.isdecimal() else _DEFAULT_RETRY_S
                raise Overloaded(f"{self._name} is overloaded", min(retry_after_s, _MAX_RETRY_S))
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                variable = self._engine.api_key_env or "api_key_env, which is not set"
                problem = f"refuses the operator's key, from {variable}"
            case HTTPStatus.NOT_FOUND:
                problem = f"has no model {self._engine.model}, or another url"
            case _:
                problem = "answers"
        raise NotReady(f"{self._name} {problem}: status {response.status}")

    def _message(self, error: object) -> str:
        """Return the message of an engine's error, bounded, in one line, without the key."""
        if isinstance(error, bytes):
            error = error.decode(errors="replace")
            with suppress(ValueError, RecursionError):
                error = json.loads(error)
        for key in ("error", "message", "detail"):
            if isinstance(error, dict) and key in error:
                error = error[key]
        message = " ".join(str(error).split())
        if self._key:
            message = message.replace(self._key, "[key]")
        return message[:_MAX_MESSAGE_CHARS]

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                # a request has a deadline
                timeout=aiohttp.ClientTimeout(None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


ModelClient = RunnerClient | EngineClient


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the chunks of a stream, or a whole completion; raise ValueError if it is too long."""
    is_stream = response.content_type != "application/json"
    num_bytes = 0
    rest = bytearray()
    async for data in response.content.iter_any():
        num_bytes += len(data)
        if num_bytes > _MAX_RESPONSE_BYTES:
            raise ValueError(f"more than {_MAX_RESPONSE_BYTES} bytes")
        rest += data
        if is_stream and b"\n" in data:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                event = line.strip().removeprefix(b"data:").strip()
                if event.startswith(b"{"):
                    yield json.loads(event)
    if not is_stream and rest.lstrip().startswith(b"{"):
        yield json.loads(rest)


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > max_bytes:
            break
    return bytes(body[:max_bytes])


def _count(tokens: object) -> int:
    return tokens if isinstance(tokens, int) and 0 <= tokens <= _MAX_TOKENS else 0


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
