"""The client of one model's runner, and its HTTP channel: a Unix socket of the supervisor on this
host, TCP elsewhere.

The first call has no pixels. If the runner has no features of the image, the pixels are decoded,
resized and sent with a second call; those of a small image that this process has not sent before,
with the first. A call whose connection breaks is repeated once: calls are idempotent. A cancelled
call closes its connection, which ends it in the runner. The channel raises aiohttp's errors, of
which the client makes `ServiceError`s.
"""

import asyncio
import io
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import aiohttp
from cachetools import LRUCache
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter

from runners.artifacts.manifest import Manifest
from runners.telemetry.tracing import call_headers, span
from runners.transport.guards import BUILD_HEADER
from runners.transport.messages import (
    AdapterStates,
    Failed,
    FinishReason,
    FoundFeatures,
    Outcomes,
    SequenceSpec,
    WriteCall,
    WritingEvent,
    Written,
)
from runners.transport.pixels import IMAGE_KEY_HEADER, Pixels, body_of, in_memory
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
)
from service.images.decoding import LazyImage
from service.runner_client.stream_replay import OnText, ReplayDiverged, StreamReplay

logger = logging.getLogger(__name__)

# Below the 5 s after which a runner's uvicorn closes an idle connection: no request is sent on one
# that is closing.
_KEEP_ALIVE_S = 4.0
_CONNECT_S = 2.0  # an unreachable host does not refuse connections
_EVENT: TypeAdapter[WritingEvent] = TypeAdapter(WritingEvent)
# Errors of a connection that was closed while idle, could not be made, or whose runner died.
_BROKEN_CONNECTION = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientOSError,
    aiohttp.ClientPayloadError,
    aiohttp.ConnectionTimeoutError,
)
# A proxy answers these where a runner died with a call that the proxy could not replay, or has no
# runner for a moment.
_UNREACHED = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_RETRY_PAUSE_S = 0.1  # until aiohttp has noticed other connections that broke at the same time
_READY_TIMEOUT_S = 1
_MAX_KNOWN_IMAGES = 16_384


class FeaturesMissing(Exception):
    """The runner has no features under the image key; call again with pixels."""


@dataclass(frozen=True, slots=True)
class RunnerCall:
    """Sequences of one image; `pixels` (H, W, 3) if the runner has no features of it."""

    image_key: str
    sequences: Sequence[SequenceSpec]
    pixels: Pixels | None = None


class RunnerChannel:
    """Calls to `url`: `file://PATH` of a Unix socket, with pixels in shared memory; or `tcp://` or
    `http://HOST:PORT`.
    """

    def __init__(self, url: str, build_key: str, timeout_s: float) -> None:
        self.url = url
        self._socket_path = unquote(urlsplit(url).path) if url.startswith("file:") else None
        self._headers = {BUILD_HEADER: build_key}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def write(self, call: RunnerCall) -> Outcomes:
        """Return the outcome of each sequence."""
        async with self._response("/write", call) as response:
            return Outcomes.model_validate_json(await response.read())

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is written, and its outcome.

        Closing the generator ends them.
        """
        async with self._response("/stream", call) as response:
            async for line in _lines(response.content.iter_any()):
                yield _EVENT.validate_json(line)

    async def is_ready(self, timeout_s: float) -> bool:
        """Return True if the runner reports within `timeout_s` seconds that it is ready."""
        try:
            timeout = aiohttp.ClientTimeout(timeout_s)
            async with self._client().get("/readyz", timeout=timeout) as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def adapters(self, timeout_s: float) -> AdapterStates | None:
        """Return the adapters of the runner; None without an answer within `timeout_s` seconds."""
        try:
            timeout = aiohttp.ClientTimeout(timeout_s)
            async with self._client().get("/adapters", timeout=timeout) as response:
                response.raise_for_status()
                return AdapterStates.model_validate_json(await response.read())
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def close(self) -> None:
        """Close idle connections; make no call after that."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _response(self, path: str, call: RunnerCall) -> AsyncIterator[aiohttp.ClientResponse]:
        shared = None if self._socket_path is None else call.pixels
        with (
            nullcontext() if shared is None else in_memory(shared) as memory,
            span(f"POST {path}", kind=SpanKind.CLIENT),
        ):
            message = WriteCall(sequences=list(call.sequences), pixels=memory)
            body, headers = body_of(message, call.pixels if shared is None else None)
            headers |= {IMAGE_KEY_HEADER: call.image_key} | call_headers()
            async with self._client().post(
                path, data=io.BytesIO(body), headers=headers
            ) as response:
                if response.status == HTTPStatus.NOT_FOUND and call.pixels is None:
                    await response.read()  # unread, it would cost the connection
                    raise FeaturesMissing
                response.raise_for_status()
                yield response

    def _client(self) -> aiohttp.ClientSession:
        """Return the session, created in the event loop of the first call."""
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket_path is None:
                base_url = self.url.replace("tcp://", "http://", 1)
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
            else:
                base_url = "http://runner"
                connector = aiohttp.UnixConnector(
                    self._socket_path, limit=0, keepalive_timeout=_KEEP_ALIVE_S
                )
            timeout = aiohttp.ClientTimeout(self._timeout_s, sock_connect=_CONNECT_S)
            self._session = aiohttp.ClientSession(
                base_url, headers=self._headers, connector=connector, timeout=timeout
            )
        return self._session


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield lines of any length as they arrive (aiohttp 3.14's own `readline` has a limit)."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Written sequences of one request, and the seconds of each stage."""

    sequences: tuple[Written, ...]
    text: str  # of all sequences, one line each
    finish_reason: FinishReason  # `length` if any sequence was truncated
    num_prompt_tokens: int  # without image tokens
    num_generated_tokens: int  # with start and end tokens
    features: FoundFeatures
    preprocess_s: float  # decoding and resizing; 0 where the runner had the features
    queue_s: float  # for slots, and transport
    prefill_s: float
    decode_s: float


class RunnerClient:
    """Calls to the runner of one model, about itself or one of its adapters."""

    def __init__(self, model_id: str, channel: RunnerChannel) -> None:
        self._model_id = model_id
        self._channel = channel
        # keys of those sent or found
        self._known_images: LRUCache[str, None] = LRUCache(_MAX_KNOWN_IMAGES)

    async def write(
        self,
        manifest: Manifest,
        image: LazyImage,
        specs: Sequence[SequenceSpec],
        on_text: OnText | None = None,
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `manifest` is that of the model or adapter that `specs` name. `on_text` receives their text
        as it is written. Cancellation ends them in the runner.
        """
        start_s = time.monotonic()
        preprocess_s = 0.0
        answered = None
        replay = None if on_text is None else StreamReplay(len(specs), on_text)
        call = RunnerCall(image.key(manifest), specs)
        try:
            if call.image_key in self._known_images or not image.header.is_light:
                with suppress(FeaturesMissing):
                    answered = await self._retried(call, replay)
            if answered is None:
                missing_s = time.monotonic()
                with span("preprocess"):
                    pixels = await image.pixels(manifest)
                preprocess_s = time.monotonic() - missing_s
                answered = await self._retried(replace(call, pixels=pixels), replay)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._failure(error) from error
        self._known_images[call.image_key] = None
        return written_answers(answered, preprocess_s, time.monotonic() - start_s)

    async def is_ready(self) -> bool:
        return await self._channel.is_ready(_READY_TIMEOUT_S)

    async def adapters(self) -> AdapterStates | None:
        """Return the adapters of the runner; None if it does not answer, as while it starts."""
        return await self._channel.adapters(_READY_TIMEOUT_S)

    async def close(self) -> None:
        await self._channel.close()

    async def _retried(self, call: RunnerCall, replay: StreamReplay | None) -> Outcomes:
        is_repeated = False
        while True:
            try:
                return await (
                    self._channel.write(call) if replay is None else self._stream(call, replay)
                )
            except (*_BROKEN_CONNECTION, aiohttp.ClientResponseError) as error:
                if is_repeated or (
                    isinstance(error, aiohttp.ClientResponseError)
                    and error.status not in _UNREACHED
                ):
                    raise
                logger.warning(
                    "repeating the call to the runner of %s after %r", self._model_id, error
                )
            is_repeated = True
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _stream(self, call: RunnerCall, replay: StreamReplay) -> Outcomes:
        """Send text as it arrives.

        A repeated stream continues after the text already sent, if that is the same.
        """
        replay.begin()
        features = FoundFeatures(outcome="hit")
        try:
            async with aclosing(self._channel.stream(call)) as events:
                async for event in events:
                    if isinstance(event, FoundFeatures):
                        features = event
                    else:
                        replay.receive(event)
        except ReplayDiverged as error:  # the answer was sampled
            message = (
                f"the runner of {self._model_id} restarted; a sampled answer cannot be resumed;"
                " retry the request"
            )
            raise NotReady(message) from error
        if len(replay.outcomes) < len(call.sequences):
            raise InternalError(
                f"the runner of {self._model_id} ended the stream before the answer was complete"
            )
        return Outcomes(features=features, outcomes=replay.outcomes)

    def _failure(self, error: aiohttp.ClientError | TimeoutError) -> ServiceError:
        """Return the error for a call that failed: by the status of the runner or of a proxy in
        front of it, if any.
        """
        status = error.status if isinstance(error, aiohttp.ClientResponseError) else None
        if status in _UNREACHED:
            return NotReady(
                f"no runner of {self._model_id} with this gateway's build is ready; retry in a few"
                " seconds"
            )
        is_late = isinstance(error, TimeoutError) and not isinstance(
            error, aiohttp.ConnectionTimeoutError
        )
        if is_late or status == HTTPStatus.GATEWAY_TIMEOUT:
            return DeadlineExceeded(
                f"the runner of {self._model_id} did not answer before the deadline"
            )
        if status is not None:
            return InternalError(
                f"the runner of {self._model_id} answered with status {status}; its log has the"
                " cause"
            )
        logger.warning("the runner of %s is unreachable: %r", self._model_id, error)
        return NotReady(
            f"the runner of {self._model_id} is starting or restarting; retry in a few seconds"
        )


def written_answers(answered: Outcomes, preprocess_s: float, elapsed_s: float) -> WrittenAnswers:
    """Return the sequences of a call that took `elapsed_s`.

    Raise the error of the first that failed.
    """
    sequences: list[Written] = []
    for outcome in answered.outcomes:
        if isinstance(outcome, Failed):
            raise _error_of(outcome)
        sequences.append(outcome)
    # The stages of the slowest sequence: all of them run at the same time.
    _, prefill_s, decode_s = max(((s.queue_s, s.prefill_s, s.decode_s) for s in sequences), key=sum)
    known_s = (
        preprocess_s + answered.features.encode_s + answered.features.queue_s + prefill_s + decode_s
    )
    return WrittenAnswers(
        sequences=tuple(sequences),
        text="\n".join(sequence.text for sequence in sequences),
        finish_reason="length" if any(s.finish_reason == "length" for s in sequences) else "stop",
        num_prompt_tokens=sum(sequence.num_prompt_tokens for sequence in sequences),
        num_generated_tokens=sum(sequence.num_generated_tokens for sequence in sequences),
        features=answered.features,
        preprocess_s=preprocess_s,
        queue_s=max(0.0, elapsed_s - known_s),
        prefill_s=prefill_s,
        decode_s=decode_s,
    )


def _error_of(failed: Failed) -> ServiceError:
    match failed.code:
        case "sequence_too_long":
            return InvalidRequest(
                failed.message, "max_new_tokens" if "max_new_tokens" in failed.message else None
            )
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "unknown_adapter":
            return NotReady(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)
