"""Calls to the runners of one model, with every way they can fail turned into an error of the service's tree."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Literal, Protocol, TypeVar

import aiohttp
import numpy as np
from numpy.typing import NDArray

from runners.artifacts import Manifest
from runners.messages import (
    AnyArray,
    Array,
    EncodedImage,
    EncodeOutcome,
    Failed,
    ImageToEncode,
    MemoryAddress,
    Outcomes,
    SequenceSpec,
    WritingEvent,
    Written,
)
from runners.metrics import QUEUE_DEPTH
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
)
from service.shared_memory import SharedMemory
from service.text_in_order import TextInOrder, TextListener
from service.vision_cache import EncodedFeatures, Features, FeaturesKey, VisionCache

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

Part = Literal["encoder", "decoder"]

_READY_TIMEOUT_S = 1
_RETRY_PAUSE_S = 0.1


class RunnerApi(Protocol):
    """A runner's service (see `service.runner_calls`)."""

    async def can_open(self, memory: MemoryAddress) -> bool:
        """Say whether arrays in this memory can be sent there."""
        ...

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the service answers within `timeout` seconds."""
        ...


class EncoderApi(RunnerApi, Protocol):
    """An encoder service."""

    async def encode(self, image: ImageToEncode) -> EncodeOutcome:
        """Return the image's features, or why there are none."""
        ...


class DecoderApi(RunnerApi, Protocol):
    """A decoder service."""

    async def write(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> Outcomes:
        """Return what became of each sequence. A caller that is cancelled ends them."""
        ...

    def stream(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> AsyncGenerator[WritingEvent, None]:
        """Yield the text of each sequence as it is written, and what became of each; closed, it ends them."""
        ...


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """The sequences of one task and what they took."""

    sequences: tuple[Written, ...]
    prefill_s: float
    decode_s: float
    queue_s: float  # waiting for the batch, and transport


class RunnerClient:
    """The encoder and the decoder of one model.

    Arrays travel through `memory` to a runner that can open it, which it is asked once, and with their bytes to others.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: EncoderApi,
        decoder: DecoderApi,
        vision_cache: VisionCache,
        memory: SharedMemory | None,
    ) -> None:
        self._model_id = manifest.model_id
        self._build_key = manifest.build_key
        self._features_shape = (manifest.num_image_tokens, manifest.hidden_size)
        self._vision_cache = vision_cache
        self._encoder = encoder
        self._decoder = decoder
        self._memory = memory
        self._can_open: dict[Part, bool] = {}
        self._encode_depth = QUEUE_DEPTH.labels(manifest.model_id, "encode")

    async def encode(self, pixels: NDArray[np.uint8]) -> EncodedFeatures:
        """Return the image features of resized RGB `pixels` (H, W, 3), from the cache where it has them."""
        key = FeaturesKey.of(self._model_id, self._build_key, pixels)
        return await self._vision_cache.get(key, partial(self._encode, pixels))

    async def write(
        self, image_features: Features, specs: Sequence[SequenceSpec], on_text: TextListener | None = None
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `on_text` hears their text as it is written. Cancelled, it ends them.
        """
        start_s = time.monotonic()
        message = await self._message(image_features)
        if on_text is None:
            call = partial(self._decoder.write, image_features=message, sequences=list(specs))
        else:
            call = partial(self._stream, message, list(specs), on_text)
        sequences = tuple(_written(outcome) for outcome in (await self._call("decoder", call)).outcomes)
        slowest = max(sequences, key=lambda sequence: sequence.queue_s + sequence.prefill_s + sequence.decode_s)
        waited_s = time.monotonic() - start_s - slowest.prefill_s - slowest.decode_s
        return WrittenAnswers(sequences, slowest.prefill_s, slowest.decode_s, max(0.0, waited_s))

    async def is_ready(self) -> bool:
        """Say whether both runners answer."""
        try:
            return all([await self._encoder.is_ready(_READY_TIMEOUT_S), await self._decoder.is_ready(_READY_TIMEOUT_S)])
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _stream(self, image_features: AnyArray, specs: list[SequenceSpec], on_text: TextListener) -> Outcomes:
        """Write with text as it comes. Once some was told, a broken connection is final: it cannot be told again."""
        text = TextInOrder(len(specs), on_text)
        try:
            async with aclosing(self._decoder.stream(image_features, specs)) as events:
                async for event in events:
                    text.hear(event)
        except aiohttp.ClientError as error:
            if text.has_told:
                raise self._unreachable("decoder", error) from error
            raise
        if len(text.outcomes) < len(specs):
            raise InternalError(f"the decoder of {self._model_id} ended a stream before its end")
        return Outcomes(outcomes=text.outcomes)

    async def _encode(self, pixels: NDArray[np.uint8]) -> EncodedFeatures:
        start_s = time.monotonic()
        with self._encode_depth.track_inprogress():
            memory = await self._memory_with("encoder", self._encoder)
            encoding = self._encode_bytes(pixels) if memory is None else self._encode_shared(pixels, memory)
            features, encode_s = await encoding
        return EncodedFeatures(features, encode_s, max(0.0, time.monotonic() - start_s - encode_s))

    async def _encode_bytes(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        encoded = await self._ask_encoder(ImageToEncode(pixels=Array.of(pixels)))
        if not isinstance(encoded.image_features, Array):
            raise InternalError(f"the encoder of {self._model_id} sent no features")
        return encoded.image_features, encoded.encode_s

    async def _encode_shared(self, pixels: NDArray[np.uint8], memory: SharedMemory) -> tuple[Features, float]:
        source = memory.reserve(pixels.shape, pixels.dtype.name)
        target = memory.reserve(self._features_shape, "float32")
        await asyncio.to_thread(source.write, pixels)
        encoded = await self._ask_encoder(ImageToEncode(pixels=source.message, target=target.message))
        return target, encoded.encode_s

    async def _ask_encoder(self, image: ImageToEncode) -> EncodedImage:
        outcome = await self._call("encoder", partial(self._encoder.encode, image=image))
        if isinstance(outcome, Failed):
            raise _error_of(outcome)
        return outcome

    async def _message(self, image_features: Features) -> AnyArray:
        """Return the message of features for the decoder."""
        if isinstance(image_features, Array):
            return image_features
        if await self._memory_with("decoder", self._decoder) is not None:
            return image_features.message
        return Array.of(image_features.read())

    async def _memory_with(self, part: Part, runner: RunnerApi) -> SharedMemory | None:
        """Return the memory if the runner can open it."""
        if self._memory is None:
            return None
        if part not in self._can_open:
            self._can_open[part] = await self._call(part, partial(runner.can_open, memory=self._memory.address))
            if not self._can_open[part]:
                logger.info("the %s of %s shares no memory: arrays travel with their bytes", part, self._model_id)
        return self._memory if self._can_open[part] else None

    async def _call(self, part: Part, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            return await _with_one_retry(call)
        except aiohttp.ClientResponseError as error:
            raise self._refusal(part, error.status) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"the {part} of {self._model_id} did not answer in time") from error
        except aiohttp.ClientError as error:
            raise self._unreachable(part, error) from error

    def _unreachable(self, part: Part, error: aiohttp.ClientError) -> NotReady:
        logger.warning("the %s of %s was not reached: %r", part, self._model_id, error)
        return NotReady(f"the {part} of {self._model_id} is starting or was restarted; try again in a few seconds")

    def _refusal(self, part: Part, status: int) -> ServiceError:
        """Return the error of an answer that is none; with 503 BentoML refuses what it could not do in time."""
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            return Overloaded(f"the {part} of {self._model_id} has more to do than it can in time; try later")
        return InternalError(f"the {part} of {self._model_id} failed")


async def _with_one_retry(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Ask again if the connection broke: it was idle and just closed, or the runner died.

    Asking twice is safe, as an answer depends on nothing but its request.
    """
    try:
        return await call()
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError) as error:
        logger.warning("asking a runner again: %r", error)
        await asyncio.sleep(_RETRY_PAUSE_S)  # until other connections that broke with it are known to be so
        return await call()


def _written(outcome: Any) -> Written:
    if isinstance(outcome, Failed):
        raise _error_of(outcome)
    if not isinstance(outcome, Written):
        raise InternalError("the decoder sent an answer of an unknown kind")
    return outcome


def _error_of(failed: Failed) -> ServiceError:
    match failed.code:
        case "sequence_too_long":
            return InvalidRequest(failed.message, "max_new_tokens" if "max_new_tokens" in failed.message else None)
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)
