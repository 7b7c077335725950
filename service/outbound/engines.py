"""Reads what an engine of OpenAI's protocol answers; what leaves is valid text and finite numbers.

Source of names and meaning: OpenAI's API reference, "Create chat completion" and "The chat
completion chunk object".
"""

import codecs
import io
import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import Any

import aiohttp

from service.outbound.bounds import BoundedConnector, body_pieces, read_body
from service.outbound.messages import CallError, Event, HttpCall, ResponseHead
from wire.runner_messages import Written

_MAX_RESPONSE_BYTES = 4_000_000
_MAX_LINES = 50_000  # of a stream: an event has two
_MAX_TOKENS_LISTED = 20_000  # events of a stream, and tokens with log-probabilities
_MAX_ANSWER_CHARS = 300_000
_MAX_TOKENS = 2**31 - 1  # gRPC's int32
_MAX_ERROR_BYTES = 20_000
_MAX_CONNECTIONS = 256
_CONNECT_S = 5.0
_DEFAULT_RETRY_S = 5.0
_MAX_RETRY_S = 60.0
_KEEP_ALIVE_S = 4.0
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)


@dataclass(slots=True)
class _Completion:
    """The received part of a chat completion."""

    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0
    token_bytes: list[bytes] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: object = None
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0

    def receive(self, chunk: Mapping[str, Any]) -> str:
        """Add a chunk or a whole completion; return its text. Raise ValueError for another form."""
        try:
            if usage := chunk.get("usage"):
                self.num_prompt_tokens = _count(usage.get("prompt_tokens"))
                self.num_generated_tokens = _count(usage.get("completion_tokens"))
            choices = chunk.get("choices")
            return self._receive_choice(choices[0]) if choices else ""
        except (AttributeError, LookupError, OverflowError, TypeError) as error:
            raise ValueError("another form than a chat completion's") from error

    def _receive_choice(self, choice: Mapping[str, Any]) -> str:
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        logprobs = choice.get("logprobs") or {}
        for token in logprobs.get("content") or ():
            written = token.get("bytes") or token["token"].encode(errors="replace")
            self.token_bytes.append(bytes(list(written)))
            self.logprobs.append(_logprob(token["logprob"]))
            if len(self.logprobs) > _MAX_TOKENS_LISTED:
                raise ValueError(f"more than {_MAX_TOKENS_LISTED} tokens")
        message = choice.get("delta") or choice.get("message") or {}
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is not a string")
        if text:
            text = _valid(text)
            self.num_chars += len(text)
            if self.num_chars > _MAX_ANSWER_CHARS:
                raise ValueError(f"more than {_MAX_ANSWER_CHARS} characters")
            self.pieces.append(text)
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

    def written(self) -> Written:
        """Return the sequence as a runner would have written it, without times."""
        ends = self.token_ends()
        return Written(
            text="".join(self.pieces),
            token_ends=ends,
            logprobs=[min(0.0, value) for value in self.logprobs] if ends else [],
            finish_reason="length" if self.finish_reason == "length" else "stop",
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens or len(self.logprobs),
            queue_s=0.0,
            prefill_s=0.0,
            decode_s=0.0,
        )


async def get_document(call: HttpCall, body: bytes) -> AsyncGenerator[Event, None]:
    """Yield the head of the response, then its first bytes; raise `CallError`."""
    try:
        async with _open_session() as session, _request(session, call, body) as response:
            yield _head(response)
            yield await read_body(response, call.max_bytes)
    except (aiohttp.ClientError, OSError) as error:
        raise _call_error(error) from error


class EngineCalls:
    """Completions of engines, over connections that are kept for the next call."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(self, call: HttpCall, body: bytes) -> AsyncGenerator[Event, None]:
        """Yield the head of the response, the text as it comes, the completion.

        Raise `CallError`.
        """
        if self._session is None:
            self._session = _open_session()
        try:
            async with _request(self._session, call, body) as response:
                message = ""
                if response.status in _REFUSALS:
                    message = _error_message(await read_body(response, _MAX_ERROR_BYTES))
                yield _head(response, message)
                if response.status != HTTPStatus.OK:
                    return
                completion = _Completion()
                async for chunk in _chunks(response, call.max_bytes):
                    if chunk.get("error"):
                        problem = _error_message(chunk)
                        raise CallError("broke_off" if completion.pieces else "rejected", problem)
                    if text := completion.receive(chunk):
                        yield text.encode()
            if completion.finish_reason is None:
                raise CallError("broken", "the stream ended before the answer was complete")
            yield completion.written()
        except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
            raise _call_error(error) from error


def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=BoundedConnector(
            _MAX_RESPONSE_BYTES, limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S
        ),
        # a call has a timeout
        timeout=aiohttp.ClientTimeout(None, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )


def _request(
    session: aiohttp.ClientSession, call: HttpCall, body: bytes
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    # aiohttp sends a file in pieces, and warns of long bytes
    data = io.BytesIO(body) if body else None
    method = "POST" if body else "GET"
    return session.request(method, call.url, data=data, headers=call.headers, allow_redirects=False)


async def _chunks(
    response: aiohttp.ClientResponse, max_bytes: int
) -> AsyncGenerator[Mapping[str, Any], None]:
    """Yield the chunks of a stream, or a whole completion; raise ValueError above a limit."""
    is_stream = response.content_type != "application/json"
    num_bytes = 0
    num_lines = 0
    num_events = 0
    rest = bytearray()
    async for data in body_pieces(response, max_bytes):
        num_bytes += len(data)
        if num_bytes > max_bytes:
            raise ValueError(f"more than {max_bytes} bytes")
        rest += data
        if not is_stream or b"\n" not in data:
            continue
        *lines, rest = rest.split(b"\n")
        num_lines += len(lines)
        if num_lines > _MAX_LINES:
            raise ValueError(f"more than {_MAX_LINES} lines")
        for line in lines:
            event = line.strip().removeprefix(b"data:").strip()
            if event.startswith(b"{"):
                num_events += 1
                if num_events > _MAX_TOKENS_LISTED:
                    raise ValueError(f"more than {_MAX_TOKENS_LISTED} events")
                yield json.loads(event)
    if not is_stream and rest.lstrip().startswith(b"{"):
        yield json.loads(rest)


def _head(response: aiohttp.ClientResponse, message: str = "") -> ResponseHead:
    after_s = response.headers.get("Retry-After", "")
    retry_after_s = float(after_s) if after_s.isdecimal() else _DEFAULT_RETRY_S
    retry_after_s = min(retry_after_s, _MAX_RETRY_S)
    return ResponseHead(status=response.status, retry_after_s=retry_after_s, message=message)


def _call_error(error: Exception) -> CallError:
    """Return the error of a call; one of aiohttp quotes what the host sent, which may be a key."""
    is_ours = isinstance(error, aiohttp.ClientPayloadError) or type(error) is ValueError
    problem = f"{type(error).__name__} {error}" if is_ours else type(error).__name__
    is_connection = isinstance(error, aiohttp.ClientConnectionError | OSError)
    return CallError("unreachable" if is_connection else "broken", problem)


def _error_message(error: object) -> str:
    """Return the message of an engine's error, in one line."""
    if isinstance(error, bytes):
        error = error.decode(errors="replace")
        with suppress(ValueError, RecursionError):
            error = json.loads(error)
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and key in error:
            error = error[key]
    return _valid(" ".join(str(error).split()))[:_MAX_ERROR_BYTES]


def _valid(text: str) -> str:
    """Return a text without halves of surrogate pairs, which no interface can send."""
    return text.encode(errors="replace").decode()


def _logprob(value: Any) -> float:
    """Return a log-probability; NaN for none, and for a number beyond floats."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan


def _count(tokens: object) -> int:
    return tokens if isinstance(tokens, int) and 0 <= tokens <= _MAX_TOKENS else 0
