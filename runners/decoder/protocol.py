"""The interfaces below the batch: a family's decoder, and the engine that runs its passes.

A family has prompts, shapes, a prefill and a step; the slots and lengths of its cache are the
engine's (runners/kv_cache/slot_cache.py). An engine has one implementation for each way to run
passes; the batch and the scheduler know none of them. Shapes: B or R rows, S image and prompt, T
tokens of a row, C hidden, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.decoder.sequences import LiveSequence, SequenceRequest
from runners.kv_cache import DecoderShape, SlotCache, Slots, TokenPlaces
from runners.tokens.choice import Chosen, NextInputs, RowConditions
from runners.tokens.rules import GenerationRules
from runners.tokens.text import CheckpointText

PassT = TypeVar("PassT")


class Decoder(Protocol):
    """The decoder of a family."""

    rules: GenerationRules
    text: CheckpointText
    shape: DecoderShape
    can_draft: bool  # False: read one token of each slot, as a measurement compares
    # begins every answer: a prefill reads it, and drafts after it; None: no such token
    start_token_id: int | None

    @property
    def adapters(self) -> Adapters:
        """The adapters that requests may name."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings (…, C) of a prompt's tokens."""

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,
        first: TokenPlaces | None,
    ) -> Tensor:
        """Process images and prompts (B, S, C) of `num_prefix_tokens` (B,) into `slots`, and the
        start tokens with their drafts at `first`, using no value of the host.

        Return the logits (R, V) of each next token.
        """

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        """Process tokens at their places, without counting them.

        Return the logits (B * T, V) after each.
        """


class Engine(Protocol[PassT]):
    """Runs the passes of one decoder over its slots; `PassT` is a launched pass."""

    @property
    def cache(self) -> SlotCache:
        """The slots, which the engine owns."""

    def drafts(
        self, sequences: Sequence[LiveSequence], is_first: bool = False
    ) -> list[Sequence[int]]:
        """Return the tokens to read with the certain ones of slots, one draft for each of
        `sequences`; `is_first`: in a prefill.
        """

    def prefill(
        self,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> PassT:
        """Process images and prompts into free slots: from `first_slot` on one of each sequence,
        then those of further beams, in order.
        """

    def decode(self, tokens: Sequence[Sequence[int]]) -> PassT:
        """Process the next token of each slot from 0 on, and its draft after it."""

    def choose(
        self,
        launched: PassT,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        following: Callable[[], NextInputs] | None = None,
    ) -> Chosen[PassT]:
        """Return the choices of each sequence as `choose_tokens` does.

        `conditions` are those of the rows of the pass, `sequences` the rows of each sequence. An
        engine that can launch the next pass before its tokens are known calls `following`, which is
        None if that pass would be superfluous.
        """


NewEngine = Callable[[Decoder, int], Engine[Any]]  # arguments: a decoder and its number of slots
