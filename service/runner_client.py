"""Calls to the runners of one model, with every way they can fail turned into an error of the service's tree."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import aiohttp
import numpy as np
from bentoml.exceptions import BentoMLException, ServiceUnavailable
from numpy.typing import NDArray

from runners.messages import Array, EncodedImage, Failed, Outcome, SequenceSpec, Written
from runners.metrics import QUEUE_DEPTH
from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
)
from service.vision_cache import EncodedFeatures, FeaturesKey, VisionCache

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_READY_TIMEOUT_S = 1


class EncoderApi(Protocol):
    """An encoder service, as BentoML's asynchronous client shows it."""

    async def encode(self, images: list[Array]) -> list[EncodedImage]:
        """Return image features for each image."""
        ...

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the service answers within `timeout` seconds."""
        ...


class DecoderApi(Protocol):
    """A decoder service, as BentoML's asynchronous client shows it."""

    async def write(self, image_features: Array, sequences: list[SequenceSpec]) -> list[Outcome]:
        """Return what became of each sequence."""
        ...

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the service answers within `timeout` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """The sequences of one task and what they took."""

    sequences: tuple[Written, ...]
    prefill_s: float
    decode_s: float
    queue_s: float  # waiting for the batch, and transport


class RunnerClient:
    """The encoder and the decoder of one model."""

    def __init__(
        self, model_id: str, build_key: str, encoder: EncoderApi, decoder: DecoderApi, vision_cache: VisionCache
    ) -> None:
        self._model_id = model_id
        self._build_key = build_key
        self._vision_cache = vision_cache
        self._encoder = encoder
        self._decoder = decoder
        self._encode_depth = QUEUE_DEPTH.labels(model_id, "encode")

    async def encode(self, pixels: NDArray[np.uint8]) -> EncodedFeatures:
        """Return the image features of resized RGB `pixels` (H, W, 3), from the cache where it has them."""
        key = FeaturesKey.of(self._model_id, self._build_key, pixels)
        return await self._vision_cache.get(key, partial(self._encode, pixels))

    async def write(self, image_features: Array, specs: Sequence[SequenceSpec]) -> WrittenAnswers:
        """Return the written sequences, in order; raise the error of the first that failed."""
        start_s = time.monotonic()
        call = partial(self._decoder.write, image_features=image_features, sequences=list(specs))
        sequences = tuple(_written(outcome) for outcome in await self._call("decoder", call))
        slowest = max(sequences, key=lambda sequence: sequence.queue_s + sequence.prefill_s + sequence.decode_s)
        waited_s = time.monotonic() - start_s - slowest.prefill_s - slowest.decode_s
        return WrittenAnswers(sequences, slowest.prefill_s, slowest.decode_s, max(0.0, waited_s))

    async def is_ready(self) -> bool:
        """Say whether both runners answer."""
        try:
            return all([await self._encoder.is_ready(_READY_TIMEOUT_S), await self._decoder.is_ready(_READY_TIMEOUT_S)])
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _encode(self, pixels: NDArray[np.uint8]) -> EncodedFeatures:
        start_s = time.monotonic()
        with self._encode_depth.track_inprogress():
            (encoded,) = await self._call("encoder", partial(self._encoder.encode, images=[Array.of(pixels)]))
        waited_s = time.monotonic() - start_s - encoded.encode_s
        return EncodedFeatures(encoded.image_features, encoded.encode_s, max(0.0, waited_s))

    async def _call(self, part: str, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            return await _with_one_retry(call)
        except ServiceUnavailable as error:
            raise Overloaded(f"the {part} of {self._model_id} has more to do than it can in time; try later") from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"the {part} of {self._model_id} did not answer in time") from error
        except aiohttp.ClientError as error:
            logger.warning("the %s of %s was not reached: %r", part, self._model_id, error)
            message = f"the {part} of {self._model_id} is starting or was restarted; try again in a few seconds"
            raise NotReady(message) from error
        except BentoMLException as error:
            raise InternalError(f"the {part} of {self._model_id} failed") from error


async def _with_one_retry(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Ask again if the connection broke: it was idle and just closed, or the runner died.

    Asking twice is safe, as an answer depends on nothing but its request.
    """
    try:
        return await call()
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
        logger.warning("asking a runner again: %r", error)
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
