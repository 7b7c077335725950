"""A runner without weights: meaningless features, and a canned text for each prompt."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from runners.encoder.features_cache import CachedFeatures, VisionCache
from tests.support.answers import generated
from wire.pixels import Pixels
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import (
    AdapterStates,
    EncodedImage,
    Failed,
    FoundFeatures,
    Outcome,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)

NUM_PROMPT_TOKENS = 5
FAKE_IMAGE_TOKENS = 37
ENCODE_S = 0.25
QUEUE_S = 0.5
PREFILL_S = 0.125
DECODE_S = 1.0


@dataclass(slots=True)
class FakeEncoder:
    """Records the shapes of images; features are the first pixels, one value per token."""

    failure: Exception | None = None  # raised by the call with pixels
    failed: Failed | None = None  # the outcome of every image
    released: asyncio.Event | None = None  # answers only when this is set
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    async def encode(self, pixels: Pixels) -> tuple[torch.Tensor | None, EncodedImage]:
        self.shapes.append(pixels.shape)
        if self.released is not None:
            await self.released.wait()
        if self.failed is not None:
            return None, EncodedImage(encode_s=ENCODE_S, failed=self.failed)
        return torch.from_numpy(fake_features(pixels)), EncodedImage(encode_s=ENCODE_S)


@dataclass(slots=True)
class FakeDecoder:
    """Writes the text of `answers` for a prompt; an unknown prompt is an error of the test."""

    answers: Mapping[str, str | Failed]
    failure: Exception | None = None
    released: asyncio.Event | None = None  # answers only when this is set
    specs: list[SequenceSpec] = field(default_factory=list)
    image_features: list[NDArray[np.float32]] = field(default_factory=list)
    num_waiting: int = 0  # calls that an event keeps from their answer
    num_cancelled: int = 0
    ended: asyncio.Event | None = None  # streams end only when this is set
    broken: Exception | None = None  # raised by a stream after its first piece
    num_broken: int = 4  # number of streams that raise it: a call and its repetitions

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        self.specs.extend(sequences)
        self.image_features.append(image_features.numpy())
        await self._wait(self.released)
        if self.failure is not None:
            raise self.failure
        return [_outcome(self.answers, spec) for spec in sequences]

    async def stream(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield the outcomes of `write` by tokens, the last sequence first, or fail."""
        outcomes = await self.write(image_features, sequences)
        for index, outcome in reversed(list(enumerate(outcomes))):
            if isinstance(outcome, Written):
                for start, end in pairwise([0, *outcome.token_ends]):
                    yield TextPiece(index=index, text=outcome.text[start:end])
                    if self.broken is not None and self.num_broken:
                        self.num_broken -= 1
                        raise self.broken
            await self._wait(self.ended)
            yield SequenceEnd(index=index, outcome=outcome)

    async def _wait(self, event: asyncio.Event | None) -> None:
        if event is None:
            return
        self.num_waiting += 1
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_waiting -= 1


class FakeChannel:
    """A channel to both fakes in this process, over the real features cache."""

    def __init__(
        self,
        encoder: FakeEncoder,
        decoder: FakeDecoder,
        max_cache_bytes: int = 10_000_000,
        is_up: bool = True,
    ) -> None:
        self.calls: list[RunnerCall] = []
        # None: no answer
        self.adapter_states: AdapterStates | None = AdapterStates(loaded=frozenset(), refused={})
        self._encoder = encoder
        self._decoder = decoder
        self._is_up = is_up
        self.is_closed = False
        self._cache = VisionCache("fake", max_cache_bytes, 64, 64, self._encode, lambda _: None)

    async def write(self, call: RunnerCall) -> Outcomes:
        features = await self._features(call)
        if isinstance(features, Failed):
            failed: list[Outcome] = [features for _ in call.sequences]
            return Outcomes(features=FoundFeatures(outcome="miss"), outcomes=failed)
        outcomes = await self._decoder.write(features.tensor, call.sequences)
        return Outcomes(features=features.source, outcomes=outcomes)

    async def stream(self, call: RunnerCall) -> AsyncGenerator[WritingEvent, None]:
        features = await self._features(call)
        if isinstance(features, Failed):
            yield FoundFeatures(outcome="miss")
            for index, _ in enumerate(call.sequences):
                yield SequenceEnd(index=index, outcome=features)
            return
        yield features.source
        async for event in self._decoder.stream(features.tensor, call.sequences):
            yield event

    async def is_ready(self) -> bool:
        return self._is_up

    async def adapters(self) -> AdapterStates | None:
        return self.adapter_states

    async def close(self) -> None:
        self.is_closed = True

    async def _features(self, call: RunnerCall) -> CachedFeatures | Failed:
        self.calls.append(call)
        features = await self._cache.get(call.image_key, call.pixels)
        if features is None:
            raise FeaturesMissing
        if call.pixels is not None and self._encoder.failure is not None:
            raise self._encoder.failure
        return features

    async def _encode(self, place: int) -> EncodedImage:
        encoding = self._cache.take(place)
        assert encoding is not None
        encoding.features, encoded = await self._encoder.encode(encoding.pixels)
        if encoding.features is not None:
            encoding.embedding = base64.b64encode(
                encoding.features.mean(0).numpy().tobytes()
            ).decode()
        return encoded


def fake_features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.reshape(-1)[:FAKE_IMAGE_TOKENS, np.newaxis].astype(np.float32)


def _outcome(answers: Mapping[str, str | Failed], spec: SequenceSpec) -> Outcome:
    answer = answers["".join(text for text, _ in spec.segments)]
    return answer if isinstance(answer, Failed) else written(answer)


def written(answer: str) -> Written:
    text = generated(answer)
    return Written(
        text=text.text,
        token_ends=list(text.token_ends),
        logprobs=list(text.logprobs),
        finish_reason=text.finish_reason,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_generated_tokens=len(text.token_ends) + 1,
        num_constrained_tokens=1,
        queue_s=QUEUE_S,
        prefill_s=PREFILL_S,
        decode_s=DECODE_S,
    )
