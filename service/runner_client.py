"""Calls to the runners of one model, with every way they can fail turned into an error of the service's tree."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from runners.artifacts import Manifest, Part
from runners.messages import (
    AnyArray,
    Array,
    EncodedImage,
    EncodeOutcome,
    Failed,
    ImageToEncode,
    Outcomes,
    SequenceSpec,
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
from service.runner_apis import DecoderApi, EncoderApi, Runner, RunnerLink
from service.shared_memory import SharedMemory
from service.text_in_order import TextInOrder, TextListener, ToldOtherwise
from service.vision_cache import EncodedFeatures, Features, FeaturesKey, VisionCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """The sequences of one task and what they took."""

    sequences: tuple[Written, ...]
    prefill_s: float
    decode_s: float
    queue_s: float  # waiting for the batch, and transport


class RunnerClient:
    """The encoders and the decoders of one model."""

    def __init__(
        self,
        manifest: Manifest,
        encoder: Runner[EncoderApi],
        decoder: Runner[DecoderApi],
        vision_cache: VisionCache,
    ) -> None:
        self._model_id = manifest.model_id
        self._build_key = manifest.build_key
        self._features_shape = (manifest.num_image_tokens, manifest.hidden_size)
        self._vision_cache = vision_cache
        self._encoder = encoder
        self._decoder = decoder
        self._encode_depth = QUEUE_DEPTH.labels(manifest.model_id, "encode")

    async def encode(self, pixels: NDArray[np.uint8]) -> EncodedFeatures:
        """Return the image features of resized RGB `pixels` (H, W, 3), from the cache where it has them."""
        key = FeaturesKey.of(self._model_id, self._build_key, pixels)
        return await self._vision_cache.get(key, partial(self._encode, pixels, key.pixels))

    async def write(
        self, image_features: Features, specs: Sequence[SequenceSpec], on_text: TextListener | None = None
    ) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed.

        `on_text` hears their text as it is written. Cancelled, it ends them.
        """
        start_s = time.monotonic()
        text = None if on_text is None else TextInOrder(len(specs), on_text)

        async def call(decoder: RunnerLink[DecoderApi]) -> Outcomes:
            message = await _message(image_features, decoder)
            if text is None:
                return await decoder.api.write(image_features=message, sequences=list(specs))
            return await self._stream(decoder.api, message, list(specs), text)

        num_slots = sum(spec.num_beams or 1 for spec in specs)
        with self._errors_of("decoder"):
            outcomes = (await self._decoder.ask(call, num_slots)).outcomes
        sequences = tuple(_written(outcome) for outcome in outcomes)
        slowest = max(sequences, key=lambda sequence: sequence.queue_s + sequence.prefill_s + sequence.decode_s)
        waited_s = time.monotonic() - start_s - slowest.prefill_s - slowest.decode_s
        return WrittenAnswers(sequences, slowest.prefill_s, slowest.decode_s, max(0.0, waited_s))

    @property
    def num_decoders(self) -> int:
        """How many decoders share the work now, at least 1."""
        return self._decoder.num_replicas

    async def is_ready(self) -> bool:
        """Say whether there are both an encoder and a decoder that answer."""
        return all([await self._encoder.is_ready(), await self._decoder.is_ready()])

    async def _stream(
        self, decoder: DecoderApi, image_features: AnyArray, specs: list[SequenceSpec], text: TextInOrder
    ) -> Outcomes:
        """Write with text as it comes. Begun again elsewhere, it goes on behind what was told, if that is the same."""
        text.begin()
        try:
            async with aclosing(decoder.stream(image_features, specs)) as events:
                async for event in events:
                    text.hear(event)
        except ToldOtherwise as error:  # it was drawn at random
            raise NotReady(f"a decoder of {self._model_id} is gone with an answer that no other gives") from error
        if len(text.outcomes) < len(specs):
            raise InternalError(f"the decoder of {self._model_id} ended a stream before its end")
        return Outcomes(outcomes=text.outcomes)

    async def _encode(self, pixels: NDArray[np.uint8], key: bytes) -> EncodedFeatures:
        start_s = time.monotonic()
        with self._encode_depth.track_inprogress(), self._errors_of("encoder"):
            features, encode_s = await self._encoder.ask(partial(self._encode_at, pixels), 1, key)
        return EncodedFeatures(features, encode_s, max(0.0, time.monotonic() - start_s - encode_s))

    async def _encode_at(self, pixels: NDArray[np.uint8], encoder: RunnerLink[EncoderApi]) -> tuple[Features, float]:
        memory = await encoder.shared_memory()
        if memory is not None:
            return await self._encode_shared(pixels, memory, encoder.api)
        encoded = _encoded(await encoder.api.encode(image=ImageToEncode(pixels=Array.of(pixels))))
        features = encoded.image_features
        if not isinstance(features, Array) or features.shape != self._features_shape:
            raise InternalError(f"the encoder of {self._model_id} sent features of another model, or none")
        return features, encoded.encode_s

    async def _encode_shared(
        self, pixels: NDArray[np.uint8], memory: SharedMemory, encoder: EncoderApi
    ) -> tuple[Features, float]:
        source = memory.reserve(pixels.shape, pixels.dtype.name)
        target = memory.reserve(self._features_shape, "float32")
        await asyncio.to_thread(source.write, pixels)
        image = ImageToEncode(pixels=source.message, target=target.message)
        return target, _encoded(await encoder.encode(image=image)).encode_s

    @contextmanager
    def _errors_of(self, part: Part) -> Iterator[None]:
        """Raise an error of the service's tree for what a call to a runner raises."""
        try:
            yield
        except aiohttp.ClientResponseError as error:
            raise self._refusal(part, error.status) from error
        except aiohttp.ConnectionTimeoutError as error:
            raise self._unreachable(part, error) from error
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
        if status == HTTPStatus.CONFLICT:
            return NotReady(f"the {part} of {self._model_id} has loaded another build of it than this service knows")
        return InternalError(f"the {part} of {self._model_id} failed")


async def _message(image_features: Features, decoder: RunnerLink[DecoderApi]) -> AnyArray:
    """Return the message of features for a decoder."""
    if isinstance(image_features, Array):
        return image_features
    if await decoder.shared_memory() is not None:
        return image_features.message
    return Array.of(image_features.read())


def _encoded(outcome: EncodeOutcome) -> EncodedImage:
    if isinstance(outcome, Failed):
        raise _error_of(outcome)
    return outcome


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
