"""Sequences with different prompts and options in one batch, each written as if it were alone.

    admit: prefill new sequences into free slots, choose their first tokens
    step:  choose the next token of every live sequence
    leave: whoever has ended frees its slots; what is in the last taken ones moves there

It knows a decoder by the methods of `Decoder` and nothing of its family.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from runners.decoder.beams import BeamSequence
from runners.decoder.constraints import Constraints
from runners.decoder.rules import GenerationRules
from runners.decoder.sequences import (
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    SingleSequence,
    choose_next_tokens,
)
from runners.decoder.tokenizer import Segments

CacheT = TypeVar("CacheT")


class TextOfTokens(Protocol):
    """The text of one answer, token by token."""

    def push(self, token_id: int) -> str:
        """Return what the next token adds."""
        ...


class Decoder(Protocol[CacheT]):
    """A family's decoder, as the batch and the service around it see it."""

    rules: GenerationRules
    constraints: Constraints
    pad_token_id: int

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt with the tokens that the family puts around it."""
        ...

    def text_stream(self) -> TextOfTokens:
        """Return a stream that makes text of the generated ids of one answer."""
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

    def copy(self, cache: CacheT, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Give each slot of `targets` what the slot at the same place of `sources` held before."""
        ...

    def reorder(self, cache: CacheT, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Do the same among slots that read the same image and prompt: only what was written differs."""
        ...


class LiveBatch(Generic[CacheT]):
    """The live sequences of one decoder. Slots 0 to n - 1 are taken; a sequence has a slot for each of its rows."""

    def __init__(self, decoder: Decoder[CacheT], num_slots: int) -> None:
        self._decoder = decoder
        self._num_slots = num_slots
        self._cache = decoder.new_cache(num_slots)
        self._owners: list[LiveSequence] = []  # by slot
        self._slots: dict[LiveSequence, list[int]] = {}  # by sequence, in the order of its rows

    @property
    def live(self) -> list[LiveSequence]:
        """The live sequences, in the order in which they came."""
        return list(self._slots)

    @property
    def num_taken(self) -> int:
        """Slots with a sequence."""
        return len(self._owners)

    @property
    def num_free(self) -> int:
        """Slots without."""
        return self._num_slots - len(self._owners)

    @torch.inference_mode()
    def admit(self, sequences: Sequence[LiveSequence]) -> None:
        """Prefill sequences into free slots and give each its first token."""
        logits = self._decoder.prefill(self._cache, [s.request for s in sequences], len(self._owners))
        for sequence in sequences:
            self._slots[sequence] = [self._take_slot(sequence)]
        rows = {sequence: [row] for row, sequence in enumerate(sequences)}
        for sequence in sequences:
            self._add_rows(sequence)
        self._choose(rows, logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Give every live sequence its next token."""
        last = [0] * len(self._owners)
        for sequence, slots in self._slots.items():
            for slot, token_id in zip(slots, sequence.last_token_ids, strict=True):
                last[slot] = token_id
        self._choose(self._slots, self._decoder.decode_step(self._cache, torch.tensor(last)))

    def leave(self) -> list[LiveSequence]:
        """Free the slots of all that have ended and return them."""
        ended = [sequence for sequence in self._slots if sequence.has_ended]
        self.drop(ended)
        return ended

    def drop(self, sequences: Iterable[LiveSequence]) -> None:
        """Free the slots of those of `sequences` that have any."""
        for sequence in sequences:
            for slot in sorted(self._slots.pop(sequence, ()), reverse=True):
                self._free(slot, sequence)

    def clear(self) -> list[LiveSequence]:
        """Free all slots and return whose they were."""
        live = self.live
        self._owners.clear()
        self._slots.clear()
        return live

    def _take_slot(self, sequence: LiveSequence) -> int:
        self._owners.append(sequence)
        return len(self._owners) - 1

    def _add_rows(self, sequence: LiveSequence) -> None:
        """Give a sequence of several rows its other slots, which begin like the first."""
        slots = self._slots[sequence]
        others = [self._take_slot(sequence) for _ in range(sequence.num_rows - 1)]
        slots.extend(others)  # before what may fail, so that they are freed with the sequence
        if others:
            self._decoder.copy(self._cache, slots[:1] * len(others), others)

    def _choose(self, rows: Mapping[LiveSequence, Sequence[int]], logits: Tensor) -> None:
        """Give each sequence the next token of each of its `rows` of `logits`."""
        singles = [sequence for sequence in rows if isinstance(sequence, SingleSequence)]
        if singles:
            own = [rows[sequence][0] for sequence in singles]
            choose_next_tokens(singles, logits if own == list(range(len(logits))) else logits[own])
        for sequence in rows:
            if isinstance(sequence, BeamSequence):
                parents = sequence.advance(logits[list(rows[sequence])])
                if not sequence.has_ended:
                    self._go_on_from(parents, self._slots[sequence])

    def _go_on_from(self, parents: Sequence[int], slots: Sequence[int]) -> None:
        """Let each row of a sequence continue the row of its parent."""
        changed = [(slots[parent], slot) for parent, slot in zip(parents, slots, strict=True) if slots[parent] != slot]
        if changed:
            sources, targets = zip(*changed, strict=True)
            self._decoder.reorder(self._cache, sources, targets)

    def _free(self, slot: int, sequence: LiveSequence) -> None:
        """Take a slot from a sequence that has left; the last taken slot moves there."""
        last = len(self._owners) - 1
        if sequence.error is not None:
            self._decoder.clear(self._cache, slot)
        owner = self._owners.pop()
        if slot != last:
            self._decoder.copy(self._cache, [last], [slot])
            self._owners[slot] = owner
            own = self._slots[owner]
            own[own.index(last)] = slot


def start_sequence(request: SequenceRequest, rules: GenerationRules) -> LiveSequence:
    """Return the sequence of a request before its first token."""
    return SingleSequence(request, rules) if request.num_beams == 1 else BeamSequence(request, rules)


def generate_all(decoder: Decoder[Any], requests: Sequence[SequenceRequest]) -> list[GeneratedSequence]:
    """Write all `requests` in one batch and return them in order; raise the first `SequenceError`."""
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    batch = LiveBatch(decoder, sum(sequence.num_rows for sequence in sequences))
    batch.admit(sequences)
    batch.leave()
    while batch.live:
        batch.step()
        batch.leave()
    return [sequence.result() for sequence in sequences]
