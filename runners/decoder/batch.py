"""The batch of live sequences: different prompts and options together, each generated as if alone.

Sequences enter, end, fail and are cancelled while a device computes a pass whose tokens the host
does not know. A pass reads a plain slice of cache slots: those in use are always 0 to n - 1, and
when one is freed, the row in the last one moves there. A table says which slots a sequence has; a
launched pass keeps the rows that it was launched with, by sequence. At most one is in flight ahead:

    launched ──> chosen for             its tokens extend the sequences that still have rows in it
        │  └───> rolled back, by row    the row's sequence ended, was cancelled or failed, or the
        │                               device read a token that the host has replaced
        └──────> dropped                a failed step, or no rows are left

Invariants:
- a sequence gets the tokens that it would get alone: conditions and choices are by row;
- a sequence takes its slots before its prefill, which may fail: removing it frees them;
- rows are fixed at launch; slots, in any order, may have moved since, and are looked up when tokens
  are stored;
- a sequence admitted after a launch waits for the next one: its last token is known to the host;
- before a slot is freed, its sequence is rolled back: the length of the slot is that of its answer;
- when a row moves to a freed slot while a pass is in flight, the place that it leaves is rolled
  back, too: the pass may have written NaN there, and a masked NaN reaches the slot's next sequence;
- for the same reason the slots of a sequence with an error are zeroed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor

from runners.decoder.engines import NewEngine, new_engine, rows_of
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import (
    BeamSequence,
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    SingleSequence,
)
from runners.tokens.choice import Chosen, NextInputs, RowConditions
from runners.tokens.text import GenerationRules, TokenMasks

OwnerT = TypeVar("OwnerT")

_PADDING = RowConditions()  # conditions of rows that no sequence reads


@dataclass(frozen=True, slots=True)
class FreedSlot(Generic[OwnerT]):
    """A slot that is free; the row of `moved` in `last`, the last slot in use, moves there."""

    slot: int
    last: int
    moved: OwnerT | None  # None: the slot itself was the last


class SlotTable(Generic[OwnerT]):
    """The slots of each owner, in order of admission and of its rows, and the owner of each slot.

    Moves and frees are values, which the caller applies to the cache in their order; a freed owner
    is never the one that moves.
    """

    def __init__(self) -> None:
        self.by_slot: list[OwnerT] = []
        self.of: dict[OwnerT, list[int]] = {}

    def take(self, owner: OwnerT, num_slots: int = 1) -> Sequence[int]:
        """Give an owner the next free slots, and return these."""
        taken = range(len(self.by_slot), len(self.by_slot) + num_slots)
        self.by_slot += [owner] * num_slots
        self.of.setdefault(owner, []).extend(taken)
        return taken

    def free(self, owner: OwnerT) -> list[FreedSlot[OwnerT]]:
        """Free all slots of an owner, the last first; none if it has none."""
        freed: list[FreedSlot[OwnerT]] = []
        for slot in sorted(self.of.pop(owner, ()), reverse=True):
            last = len(self.by_slot) - 1
            moved = self.by_slot.pop()
            if slot == last:
                freed.append(FreedSlot(slot, last, None))
                continue
            self.by_slot[slot] = moved
            slots = self.of[moved]
            slots[slots.index(last)] = slot
            freed.append(FreedSlot(slot, last, moved))
        return freed


@dataclass(frozen=True, slots=True)
class LaunchedPass:
    """A pass of the engine: its logits (R, V), and which rows are those of each sequence."""

    logits: Tensor
    rows: dict[LiveSequence, Sequence[int]]
    drafts: Mapping[LiveSequence, Sequence[int]] = field(default_factory=dict)


class LiveBatch:
    """The live sequences of one decoder; a sequence has one slot for each of its rows."""

    def __init__(
        self, decoder: Decoder, num_slots: int, make_engine: NewEngine = new_engine
    ) -> None:
        self._engine = make_engine(decoder, num_slots)
        self._cache = self._engine.cache
        self.captures = self._engine.captures
        self._masks = TokenMasks(decoder.text.constraints.num_tokens)
        self.slots = SlotTable[LiveSequence]()
        self._ahead: LaunchedPass | None = None  # launched before its tokens are known

    @torch.inference_mode()
    def admit(self, sequences: Sequence[LiveSequence]) -> None:
        drafts = self._engine.drafts(sequences, is_first=True)
        first_slot = len(self.slots.by_slot)
        # before what may fail, so that slots are freed with their sequence
        for sequence in sequences:
            self.slots.take(sequence)
        for sequence in sequences:
            self.slots.take(sequence, sequence.request.num_beams - 1)
        requests = [sequence.request for sequence in sequences]
        launched = self._engine.prefill(requests, first_slot, drafts)
        rows: dict[LiveSequence, Sequence[int]] = dict(zip(sequences, rows_of(drafts), strict=True))
        prefilled = LaunchedPass(launched, rows, dict(zip(sequences, drafts, strict=True)))
        # all beams have the same keys: no moves
        self._advance(prefilled, self._choose(prefilled, is_first=True))

    @torch.inference_mode()
    def step(self) -> None:
        """Decode each live sequence's next token, and those that its draft predicted after it.

        A pass launched ahead lacks sequences admitted since: they wait for the next step.
        """
        launched = self._ahead or self._launch()
        self._ahead = None
        rows: dict[LiveSequence, Sequence[int]] = {}
        for sequence, slots in self.slots.of.items():
            rows[sequence] = tuple(slots)
        result = self._choose(launched)
        sequences = list(launched.rows)
        moves = self._advance(launched, result)
        if result.ahead is not None:
            self._ahead = LaunchedPass(result.ahead, rows)
            self._roll_back([sequences[place] for place in result.redrawn])
        elif moves:
            sources, targets = zip(*moves, strict=True)
            self._cache.reorder(sources, targets)

    def _launch(self) -> LaunchedPass:
        owners = self.slots.by_slot
        drafts = self._engine.drafts(owners)
        by_slot = rows_of(drafts)
        tokens = [[0, *draft] for draft in drafts]
        rows: dict[LiveSequence, Sequence[int]] = {}
        for sequence, slots in self.slots.of.items():
            rows[sequence] = list(chain.from_iterable(by_slot[slot] for slot in slots))
            for slot, token_id in zip(slots, sequence.last_token_ids, strict=True):
                tokens[slot][0] = token_id
        launched = self._engine.decode(tokens)
        return LaunchedPass(launched, rows, dict(zip(owners, drafts, strict=True)))

    def _choose(self, launched: LaunchedPass, is_first: bool = False) -> Chosen:
        conditions = [_PADDING] * len(launched.logits)
        self._masks.clear(len(conditions))
        for sequence, rows in launched.rows.items():
            draft = launched.drafts.get(sequence, ())
            by_row = zip(rows, sequence.conditions(self._masks, draft), strict=True)
            for row, row_conditions in by_row:
                conditions[row] = row_conditions
        self._masks.compute()
        is_useful = not is_first and not all(one.has_one_token_left for one in self.slots.of)
        following = partial(self._next_inputs, launched) if is_useful else None
        sequences = list(launched.rows.values())
        return self._engine.choose(launched.logits, conditions, sequences, following, is_first)

    def _next_inputs(self, running: LaunchedPass) -> NextInputs:
        rows: list[int | None] = [None] * len(self.slots.by_slot)
        tokens = [0] * len(rows)
        parents: dict[int, Sequence[int]] = {}
        for sequence, slots in self.slots.of.items():
            chosen_rows = running.rows.get(sequence)
            for place, slot in enumerate(slots):
                if chosen_rows is None:
                    tokens[slot] = sequence.last_token_ids[place]
                else:
                    rows[slot] = chosen_rows[place]
                if len(slots) > 1:
                    parents[slot] = tuple(slots)
        return NextInputs(rows, tokens, parents)

    def _advance(self, launched: LaunchedPass, result: Chosen) -> list[tuple[int, int]]:
        """Append chosen tokens, keep drafted ones; return the moves of beams, slot to slot."""
        moves: list[tuple[int, int]] = []
        accepted: dict[int, int] = {}  # numbers of drafted tokens by slot
        for sequence, choices in zip(launched.rows, result.choices, strict=True):
            parents = sequence.advance(choices)
            if sequence.has_ended:
                continue
            slots = self.slots.of[sequence]
            for parent, slot in zip(parents, slots, strict=True):
                if slots[parent] != slot:
                    moves.append((slots[parent], slot))
            if sequence.num_accepted:
                accepted |= dict.fromkeys(slots, sequence.num_accepted)
        if accepted:
            self._cache.accept(accepted)
        return moves

    def _roll_back(self, sequences: Sequence[LiveSequence]) -> None:
        """Remove sequences from the pass launched ahead, and its token from their slots."""
        for sequence in sequences:
            if self._ahead is None or self._ahead.rows.pop(sequence, None) is None:
                continue
            for slot in self.slots.of[sequence]:
                self._cache.roll_back(slot)
            if not self._ahead.rows:
                self._ahead = None

    def remove_ended(self) -> list[LiveSequence]:
        """Free the slots of the sequences that have ended, and return these."""
        ended = [sequence for sequence in self.slots.of if sequence.has_ended]
        self.remove(ended)
        return ended

    def remove(self, sequences: Sequence[LiveSequence]) -> None:
        """Free the slots of `sequences`; those without slots are ignored."""
        if self._ahead is not None:
            self._roll_back(sequences)
        for sequence in sequences:
            for freed in self.slots.free(sequence):
                if sequence.error is not None:
                    self._cache.clear(freed.slot)
                self._cache.free(freed.slot, freed.last)
                if self._ahead is not None and freed.moved in self._ahead.rows:
                    self._cache.roll_back(freed.last)

    def clear(self) -> None:
        self.slots = SlotTable()
        self._ahead = None


def start_sequence(request: SequenceRequest, rules: GenerationRules) -> LiveSequence:
    if request.num_beams == 1:
        return SingleSequence(request, rules)
    return BeamSequence(request, rules)


def generate_all(
    decoder: Decoder, requests: Sequence[SequenceRequest], make_engine: NewEngine = new_engine
) -> list[GeneratedSequence]:
    """Generate `requests` in one batch, in order; raise the first `SequenceError`."""
    return [sequence.result() for sequence in generate_each(decoder, requests, make_engine)]


def generate_each(
    decoder: Decoder, requests: Sequence[SequenceRequest], make_engine: NewEngine = new_engine
) -> list[LiveSequence]:
    """Generate `requests` in one batch; return the ended sequences in order."""
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    batch = LiveBatch(decoder, sum(request.num_beams for request in requests), make_engine)
    batch.admit(sequences)
    batch.remove_ended()
    while batch.slots.of:
        batch.step()
        batch.remove_ended()
    return sequences
