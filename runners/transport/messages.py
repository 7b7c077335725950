"""The JSON messages between the gateway and a runner. Pixels travel beside them (runners/transport/pixels.py)."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]
CacheOutcome = Literal["hit", "miss", "joined"]
FailureCode = Literal[
    "non_finite_logits", "deadline_exceeded", "sequence_too_long", "too_many_beams", "overloaded", "internal"
]


class PixelMemory(BaseModel):
    """A memfd of the gateway that holds the pixels of one image (runners/transport/pixels.py)."""

    pid: int
    fd: int
    name: str  # of this memory and no other


class ImageToEncode(BaseModel):
    """One image of a batch: its pixels arrived with the call that waits for its features."""

    image_key: str


class SequenceSpec(BaseModel):
    """One sequence to write from an image's features; None is the checkpoint's own setting."""

    segments: list[tuple[str, bool]]  # (text, may it hold control tokens)
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int | None = None
    grammar: str | None = None  # of a well-formed answer, Lark; None: any answer may be written
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


class EncodedImage(BaseModel):
    """The outcome of one image of a batch; its features stay in the runner."""

    encode_s: float  # of its whole batch
    failed: Failed | None = None


class WriteCall(BaseModel):
    """The body of `/write` and `/stream`: sequences over the features of one image."""

    sequences: list[SequenceSpec]
    pixels: PixelMemory | None = None  # None: they follow in the body, or the features are expected to be there


class FoundFeatures(BaseModel):
    """Where the features of a call came from, and how long that took."""

    kind: Literal["features"] = "features"
    outcome: CacheOutcome
    encode_s: float = 0.0  # of the whole batch; 0 unless this call had the image encoded
    queue_s: float = 0.0  # waiting for the batch


class Outcomes(BaseModel):
    """The answer of `/write`: one outcome for each sequence of the call, in order."""

    features: FoundFeatures
    outcomes: list[Outcome]


class TextPiece(BaseModel):
    """Text that a live sequence has gained; never a part of a character or of a control token."""

    kind: Literal["piece"] = "piece"
    index: int  # of the sequence
    text: str


class SequenceEnd(BaseModel):
    """The outcome of a sequence whose pieces were sent."""

    kind: Literal["end"] = "end"
    index: int
    outcome: Outcome


WritingEvent = Annotated[FoundFeatures | TextPiece | SequenceEnd, Field(discriminator="kind")]  # of `/stream`
