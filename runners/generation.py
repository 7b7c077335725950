"""Sequences with different prompts and options in one batch, each written as if it were alone.

    admit: prefill new sequences into free slots, choose their first tokens
    step:  choose the next token of every live sequence
    leave: whoever has ended frees its slot; the last live sequence moves into it

It knows a decoder by the methods of `Decoder` and nothing of its family.
"""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from runners.prompt_tokenizer import Segments
from runners.sequences import (
    GeneratedSequence,
    GenerationRules,
    LiveSequence,
    SequenceRequest,
    choose_next_tokens,
)

CacheT = TypeVar("CacheT")


class Decoder(Protocol[CacheT]):
    """A family's decoder, as the batch and the service around it see it."""

    rules: GenerationRules
    pad_token_id: int

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt with the tokens that the family puts around it."""
        ...

    def decode_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of generated ids and the offset in it after each of them."""
        ...

    def max_new_tokens(self, num_read: int) -> int:
        """Return how many tokens fit after `num_read` tokens of image and prompt; raise `SequenceTooLong` if none."""
        ...

    def new_cache(self, num_slots: int) -> CacheT:
        """Return memory for `num_slots` sequences."""
        ...

    def prefill(self, cache: CacheT, requests: Sequence[SequenceRequest], first_slot: int) -> Tensor:
        """Read images and prompts into the slots from `first_slot` on; return the logits (B, V) of each first token."""
        ...

    def decode_step(self, cache: CacheT, token_ids: Tensor) -> Tensor:
        """Read `token_ids` (B,) of slots 0 to B - 1; return the logits (B, V) of each next token."""
        ...

    def clear(self, cache: CacheT, slot: int) -> None:
        """Forget what slot `slot` holds, NaN above all."""
        ...

    def move(self, cache: CacheT, source: int, target: int) -> None:
        """Let the sequence in slot `source` go on in slot `target`."""
        ...


class LiveBatch(Generic[CacheT]):
    """The live sequences of one decoder; the sequence at index i is in slot i."""

    def __init__(self, decoder: Decoder[CacheT], num_slots: int) -> None:
        self.live: list[LiveSequence] = []
        self._decoder = decoder
        self._num_slots = num_slots
        self._cache = decoder.new_cache(num_slots)

    @property
    def num_free(self) -> int:
        """Slots without a sequence."""
        return self._num_slots - len(self.live)

    @torch.inference_mode()
    def admit(self, sequences: Sequence[LiveSequence]) -> None:
        """Prefill sequences into free slots and give each its first token; if that raises, none is admitted."""
        logits = self._decoder.prefill(self._cache, [s.request for s in sequences], len(self.live))
        self.live.extend(sequences)
        choose_next_tokens(sequences, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Give every live sequence its next token."""
        last = torch.tensor([sequence.token_ids[-1] for sequence in self.live])
        choose_next_tokens(self.live, self._decoder.decode_step(self._cache, last))

    def leave(self) -> list[LiveSequence]:
        """Free the slots of all that have ended and return them."""
        ended = [sequence for sequence in self.live if sequence.has_ended]
        for sequence in ended:
            self._free(self.live.index(sequence))
        return ended

    def clear(self) -> list[LiveSequence]:
        """Free all slots and return whose they were."""
        live, self.live = self.live, []
        return live

    def _free(self, slot: int) -> None:
        last = len(self.live) - 1
        if self.live[slot].error is not None:
            self._decoder.clear(self._cache, slot)
        if slot != last:
            self._decoder.move(self._cache, last, slot)
            self.live[slot] = self.live[last]
        self.live.pop()


def generate_all(decoder: Decoder[Any], requests: Sequence[SequenceRequest]) -> list[GeneratedSequence]:
    """Write all `requests` in one batch and return them in order; raise the first `SequenceError`."""
    sequences = [LiveSequence(request, decoder.rules) for request in requests]
    batch = LiveBatch(decoder, len(requests))
    batch.admit(sequences)
    batch.leave()
    while batch.live:
        batch.step()
        batch.leave()
    return [sequence.result() for sequence in sequences]
