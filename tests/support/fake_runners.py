"""Runners without weights: an encoder whose features say nothing, and a decoder with a canned text for each prompt."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from runners.messages import Array, EncodedImage, Failed, Outcome, SequenceSpec, Written
from tests.support.answers import generated

NUM_PROMPT_TOKENS = 5
ENCODE_S, QUEUE_S, PREFILL_S, DECODE_S = 0.25, 0.5, 0.125, 1.0


@dataclass(slots=True)
class FakeEncoder:
    """Notes the shapes of the images that it is sent."""

    failure: Exception | None = None
    released: asyncio.Event | None = None  # answers only when this is set
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    is_up: bool = True

    async def encode(self, images: list[Array]) -> list[EncodedImage]:
        """Return features of zeros, or fail."""
        self.shapes.extend(image.shape for image in images)
        if self.released is not None:
            await self.released.wait()
        if self.failure is not None:
            raise self.failure
        features = Array.of(np.zeros((1, 1), dtype=np.float32))
        return [EncodedImage(image_features=features, encode_s=ENCODE_S) for _ in images]

    async def is_ready(self, timeout: int) -> bool:  # noqa: ARG002  # the interface has it
        """Say what the test decided, or fail."""
        if self.failure is not None:
            raise self.failure
        return self.is_up


@dataclass(slots=True)
class FakeDecoder:
    """Writes the text that `answers` has for a prompt; a prompt that it does not know is an error of the test."""

    answers: Mapping[str, str | Failed]
    failure: Exception | None = None
    specs: list[SequenceSpec] = field(default_factory=list)
    is_up: bool = True

    async def write(self, image_features: Array, sequences: list[SequenceSpec]) -> list[Outcome]:  # noqa: ARG002
        """Return what became of each sequence, or fail."""
        self.specs.extend(sequences)
        if self.failure is not None:
            raise self.failure
        return [_outcome(self.answers["".join(text for text, _ in spec.segments)]) for spec in sequences]

    async def is_ready(self, timeout: int) -> bool:  # noqa: ARG002  # the interface has it
        """Say what the test decided, or fail."""
        if self.failure is not None:
            raise self.failure
        return self.is_up


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
