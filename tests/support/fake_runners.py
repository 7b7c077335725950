"""Runners without weights: an encoder whose features say nothing, and a decoder with a canned text for each prompt."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
import numpy as np
from multidict import CIMultiDict, CIMultiDictProxy
from numpy.typing import NDArray
from yarl import URL

from runners.messages import (
    AnyArray,
    EncodedImage,
    EncodeOutcome,
    Failed,
    ImageToEncode,
    MemoryAddress,
    Outcome,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)
from runners.shared_arrays import can_open, place, view
from service.one_runner import OneRunner
from service.runner_apis import ApiT, RunnerLink
from service.shared_memory import SharedMemory
from tests.support.answers import generated

NUM_PROMPT_TOKENS = 5
FAKE_IMAGE_TOKENS = 37
ENCODE_S, QUEUE_S, PREFILL_S, DECODE_S = 0.25, 0.5, 0.125, 1.0


@dataclass(slots=True)
class FakeEncoder:
    """Notes the shapes of the images that it is sent. Its features are the first pixels, one value a token."""

    failure: Exception | None = None
    failed: Failed | None = None  # the answer for every image
    released: asyncio.Event | None = None  # answers only when this is set
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    is_up: bool = True
    is_closed: bool = False
    shares_memory: bool = True
    num_asked: int = 0  # whether it shares memory

    async def encode(self, image: ImageToEncode) -> EncodeOutcome:
        """Return features, or fail."""
        self.shapes.append(image.pixels.shape)
        if self.released is not None:
            await self.released.wait()
        if self.failure is not None:
            raise self.failure
        return self.failed or _encoded(image)

    async def can_open(self, memory: MemoryAddress) -> bool:
        """Try, unless the test decided that it does not."""
        self.num_asked += 1
        return self.shares_memory and can_open(memory)

    async def is_ready(self, timeout: int) -> bool:  # noqa: ARG002  # the interface has it
        """Say what the test decided, or fail."""
        if self.failure is not None:
            raise self.failure
        return self.is_up

    async def close(self) -> None:
        """Note it."""
        self.is_closed = True


@dataclass(slots=True)
class FakeDecoder:
    """Writes the text that `answers` has for a prompt; a prompt that it does not know is an error of the test."""

    answers: Mapping[str, str | Failed]
    failure: Exception | None = None
    released: asyncio.Event | None = None  # answers only when this is set
    specs: list[SequenceSpec] = field(default_factory=list)
    image_features: list[NDArray[np.float32]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # how the features came
    is_up: bool = True
    is_closed: bool = False
    shares_memory: bool = True
    num_cancelled: int = 0
    ended: asyncio.Event | None = None  # streams end only when this is set
    broken: Exception | None = None  # what a stream ends with after its first piece
    num_broken: int = 2  # streams, until they no longer do

    async def write(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> Outcomes:
        """Return what became of each sequence, or fail."""
        self.specs.extend(sequences)
        self.image_features.append(view(image_features).copy())
        self.kinds.append(image_features.kind)
        await self._wait(self.released)
        if self.failure is not None:
            raise self.failure
        return Outcomes(outcomes=[_outcome(self.answers[_prompt(spec)]) for spec in sequences])

    async def stream(
        self, image_features: AnyArray, sequences: list[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        """Yield what `write` returns token by token, the last sequence first; or fail half-way."""
        outcomes = (await self.write(image_features, sequences)).outcomes
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
        try:
            if event is not None:
                await event.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    async def can_open(self, memory: MemoryAddress) -> bool:
        """Try, unless the test decided that it does not."""
        return self.shares_memory and can_open(memory)

    async def is_ready(self, timeout: int) -> bool:  # noqa: ARG002  # the interface has it
        """Say what the test decided, or fail."""
        if self.failure is not None:
            raise self.failure
        return self.is_up

    async def close(self) -> None:
        """Note it."""
        self.is_closed = True


def refusal(status: int) -> aiohttp.ClientResponseError:
    """Return what a call raises that a runner answers with an error."""
    url = URL("http://runner/api")
    request = aiohttp.RequestInfo(url, "POST", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(request, (), status=status, message="secret detail")


def fake_features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (FAKE_IMAGE_TOKENS, 1) of the first pixels (H, W, 3)."""
    return pixels.reshape(-1)[:FAKE_IMAGE_TOKENS, np.newaxis].astype(np.float32)


def _encoded(image: ImageToEncode) -> EncodedImage:
    return EncodedImage(image_features=place(fake_features(view(image.pixels)), image.target), encode_s=ENCODE_S)


def _prompt(spec: SequenceSpec) -> str:
    return "".join(text for text, _ in spec.segments)


def _outcome(answer: str | Failed) -> Outcome:
    if isinstance(answer, Failed):
        return answer
    text = generated(answer)
    return Written(
        text=text.text,
        token_ends=list(text.token_ends),
        logprobs=list(text.logprobs),
        finish_reason=text.finish_reason,
        num_prompt_tokens=NUM_PROMPT_TOKENS,
        num_generated_tokens=len(text.token_ends) + 1,
        queue_s=QUEUE_S,
        prefill_s=PREFILL_S,
        decode_s=DECODE_S,
    )


def alone(api: ApiT, memory: SharedMemory | None, num_replicas: int = 1) -> OneRunner[ApiT]:
    """Return a runner in one process, which may stand for more."""
    runner = OneRunner(RunnerLink("the runner", api, memory))
    runner.num_replicas = num_replicas
    return runner
