"""The engine that runs every pass eagerly, in its own shape: with drafts, and with adapters.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from runners.decoder.drafts import MAX_SLOTS, paying
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import LiveSequence, SequenceRequest
from runners.kv_cache.slot_cache import SlotCache
from runners.tokens.conditions import Chosen, NextInputs, RowConditions
from runners.tokens.token_choice import choose_tokens


class EagerEngine:
    """The engine of a CPU; a launched pass is its logits (R, V)."""

    def __init__(self, decoder: Decoder, num_slots: int) -> None:
        self._decoder = decoder
        self.cache = SlotCache(decoder.shape, num_slots)

    def drafts(
        self, sequences: Sequence[LiveSequence], is_first: bool = False
    ) -> list[Sequence[int]]:
        """Return the drafts that pay."""
        can_draft = self._decoder.can_draft_first if is_first else self._decoder.can_draft
        if not can_draft or len(sequences) > MAX_SLOTS:
            return [()] * len(sequences)
        return paying([sequence.propose() for sequence in sequences])

    def prefill(
        self,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        slots = range(first_slot, first_slot + len(requests))
        adapters = [request.adapter for request in requests]
        self.cache.begin(slots, [request.num_prefix_tokens for request in requests], adapters)
        self._decoder.adapters.select(adapters)
        return self._decoder.prefill(self.cache, requests, slots, drafts or [()] * len(requests))

    def decode(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        places = self.cache.places(tokens)
        self._decoder.adapters.select(self.cache.adapters[: len(tokens)])
        logits = self._decoder.decode_step(self.cache, places)
        self.cache.grow(range(len(tokens)))
        return logits

    def choose(
        self,
        launched: Tensor,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        following: Callable[[], NextInputs] | None = None,  # noqa: ARG002
    ) -> Chosen[Tensor]:
        return Chosen(choose_tokens(launched, conditions, sequences))
