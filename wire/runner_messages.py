"""The JSON messages between gateway and runner.

Pixels are sent separately (wire/pixels.py).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]
CacheOutcome = Literal["hit", "miss", "joined"]
FailureCode = Literal[
    "non_finite_logits",
    "deadline_exceeded",
    "sequence_too_long",
    "too_many_beams",
    "unknown_adapter",
    "unknown_token",
    "overloaded",
    "internal",
]


class PixelMemory(BaseModel):
    """An anonymous file of the gateway that holds the pixels of one image (wire/pixels.py)."""

    pid: int
    fd: int
    name: str  # random, unique to this memory


class ImageToEncode(BaseModel):
    """One image of an encoder batch: the one in a place of the runner when the batch begins."""

    place: int


class SequenceSpec(BaseModel):
    """A sequence to generate from an image's features; unset options are the checkpoint's."""

    # (text, is_control); control tokens are recognised in control segments only
    segments: list[tuple[str, bool]]
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int | None = None
    # Lark (runners/tokens/text.py) that the answer must match, if set
    grammar: str | None = None
    adapter: str | None = None  # the build key of its artifacts; unset for the base model
    own_token: str | None = None  # of the prompt; must be a control token of the checkpoint
    client: str = ""  # shares encoder and decoder with others
    timeout_s: float  # the whole sequence, queueing included


class Written(BaseModel):
    """A complete sequence."""

    kind: Literal["written"] = "written"
    text: str  # start and end tokens excluded
    token_ends: list[int]  # offset in `text` after each token of `logprobs`
    logprobs: list[float]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int  # start and end tokens included
    num_constrained_tokens: int = 0  # chosen by the grammar against the model
    queue_s: float
    prefill_s: float
    decode_s: float


class Failed(BaseModel):
    """A failed sequence or image."""

    kind: Literal["failed"] = "failed"
    code: FailureCode
    message: str


Outcome = Annotated[Written | Failed, Field(discriminator="kind")]


class EncodedImage(BaseModel):
    """The outcome of one image of an encoder batch; its features stay in the runner."""

    encode_s: float  # the whole batch
    failed: Failed | None = None


class WriteCall(BaseModel):
    """The body of `/write` and `/stream`: sequences over the features of one image."""

    sequences: list[SequenceSpec]  # all with the same adapter
    # unset if they are in the body, or not sent as the features should be cached
    pixels: PixelMemory | None = None


class FoundFeatures(BaseModel):
    """The source of a call's features, and the time to get them."""

    kind: Literal["features"] = "features"
    outcome: CacheOutcome
    encode_s: float = 0.0  # the whole batch; 0 unless `outcome` is miss
    queue_s: float = 0.0  # waiting for the encoder
    embedding: str = ""  # the features' mean (C,): base64 of little-endian float32


class Outcomes(BaseModel):
    """The response of `/write`: the outcomes of the call's sequences, in order."""

    features: FoundFeatures
    outcomes: list[Outcome]


class TextPiece(BaseModel):
    """New text of a live sequence; characters and control tokens are never split."""

    kind: Literal["piece"] = "piece"
    index: int  # the sequence
    text: str


class SequenceEnd(BaseModel):
    """The outcome of a sequence, after all of its pieces."""

    kind: Literal["end"] = "end"
    index: int
    outcome: Outcome


# a line of `/stream`
WritingEvent = Annotated[FoundFeatures | TextPiece | SequenceEnd, Field(discriminator="kind")]


class AdapterStates(BaseModel):
    """The response of `/adapters`: the build keys of a runner's adapters."""

    loaded: frozenset[str]
    # reasons by key of adapters that the runner has found and cannot serve
    refused: dict[str, str]
