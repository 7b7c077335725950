"""What travels as JSON between the gateway's process and the runners' processes.

A tensor travels with its bytes, or as the place in memory that both processes reach.
"""

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]
FailureCode = Literal[
    "non_finite_logits", "deadline_exceeded", "sequence_too_long", "too_many_beams", "overloaded", "internal"
]


class Array(BaseModel):
    """A numpy array with its bytes."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    kind: Literal["array"] = "array"
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> Self:
        """Copy `array` into a message."""
        return cls(dtype=array.dtype.name, shape=array.shape, data=array.tobytes())

    def numpy(self) -> NDArray[Any]:
        """Return a read-only view of the message's bytes."""
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return len(self.data)


class MemoryAddress(BaseModel):
    """Where a runner on the gateway's host finds the gateway's memory."""

    pid: int
    fd: int
    name: str  # of this memory and no other


class SharedArray(BaseModel):
    """A numpy array in the gateway's memory, or room for one."""

    kind: Literal["shared"] = "shared"
    memory: MemoryAddress
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


AnyArray = Annotated[Array | SharedArray, Field(discriminator="kind")]


class ImageToEncode(BaseModel):
    """One image, and where its features shall be written; None: they come back with their bytes."""

    pixels: AnyArray  # uint8 RGB (H, W, 3)
    target: SharedArray | None = None


class EncodedImage(BaseModel):
    """The image features of one image."""

    kind: Literal["encoded"] = "encoded"
    image_features: AnyArray  # float32 (N, C)
    encode_s: float  # of its whole batch


class SequenceSpec(BaseModel):
    """One sequence to write from an image's features; None is the checkpoint's own setting."""

    segments: list[tuple[str, bool]]  # (text, may it hold control tokens)
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int | None = None
    grammar: str | None = None  # of a well-formed answer; None: any answer may be written
    timeout_s: float


class Written(BaseModel):
    """A sequence that was written to its end."""

    kind: Literal["written"] = "written"
    text: str  # without the tokens that start and end every answer
    token_ends: list[int]  # offset in `text` after each token that `logprobs` names
    logprobs: list[float]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int  # start and end tokens included
    queue_s: float
    prefill_s: float
    decode_s: float


class Failed(BaseModel):
    """A sequence that was not."""

    kind: Literal["failed"] = "failed"
    code: FailureCode
    message: str


Outcome = Annotated[Written | Failed, Field(discriminator="kind")]
EncodeOutcome = Annotated[EncodedImage | Failed, Field(discriminator="kind")]


class Encoded(BaseModel):
    """What became of an image."""

    outcome: EncodeOutcome


class TextPiece(BaseModel):
    """What a sequence that is being written has more than before; no part of a character or of a control token."""

    kind: Literal["piece"] = "piece"
    index: int  # of the sequence
    text: str


class SequenceEnd(BaseModel):
    """What became of a sequence whose pieces were sent."""

    kind: Literal["end"] = "end"
    index: int
    outcome: Outcome


WritingEvent = Annotated[TextPiece | SequenceEnd, Field(discriminator="kind")]


class Outcomes(BaseModel):
    """What became of each sequence of a call."""

    outcomes: list[Outcome]
