"""The batch of live sequences: different prompts and options together, each generated as if alone.

Problem: sequences enter, end, fail and are cancelled between steps, with one row or several, while
an engine may have launched the next pass before the tokens of this one are known.

Solution: two pure tables say which slots a sequence has (runners/decoder/slots.py) and in which
pass it is (runners/decoder/pipeline.py); the batch applies them to the engine's cache.

    admit           prefill new sequences into free slots, choose their first tokens
    step            choose the next token of every live sequence
    remove_ended    free the slots of sequences that ended; sequences in the last slots move there

Invariants:
- a sequence gets the tokens that it would get alone: conditions and choices are by row;
- a sequence takes its slots before its prefill, which may fail: removing it frees them;
- a sequence is rolled back from the pass launched ahead before its slots are freed;
- the slots of a sequence with an error are zeroed: a masked NaN would reach their next sequence.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from runners.decoder.beams import BeamSequence
from runners.decoder.drafts import rows_of, width_of
from runners.decoder.engines import new_engine
from runners.decoder.pipeline import LaunchedPass, Pipeline
from runners.decoder.protocol import Decoder, NewEngine
from runners.decoder.sequences import (
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    SingleSequence,
)
from runners.decoder.slots import SlotTable
from runners.tokens.conditions import Chosen, NextInputs, RowConditions
from runners.tokens.rules import GenerationRules

_PADDING = RowConditions()  # conditions of rows that no sequence reads
_Launched = LaunchedPass[LiveSequence, Any]


class LiveBatch:
    """The live sequences of one decoder; a sequence has one slot for each of its rows."""

    def __init__(
        self, decoder: Decoder, num_slots: int, make_engine: NewEngine = new_engine
    ) -> None:
        self._engine = make_engine(decoder, num_slots)
        self._cache = self._engine.cache
        self._slots = SlotTable[LiveSequence](num_slots)
        self._pipeline = Pipeline[LiveSequence, Any]()

    @property
    def live(self) -> list[LiveSequence]:
        """The live sequences, in order of admission."""
        return self._slots.owners

    @property
    def num_used_slots(self) -> int:
        return self._slots.num_used

    @property
    def num_free_slots(self) -> int:
        return self._slots.num_free

    @torch.inference_mode()
    def admit(self, sequences: Sequence[LiveSequence]) -> None:
        """Prefill sequences into free slots and choose their first tokens."""
        drafts = self._engine.drafts(sequences, is_first=True)
        first_slot = self._slots.num_used
        # before what may fail, so that slots are freed with their sequence
        for sequence in sequences:
            self._slots.take(sequence)
        for sequence in sequences:
            self._slots.take(sequence, sequence.num_rows - 1)
        launched = self._engine.prefill([each.request for each in sequences], first_slot, drafts)
        rows: dict[LiveSequence, Sequence[int]] = dict(zip(sequences, rows_of(drafts), strict=True))
        num_rows = len(sequences) * width_of(drafts)
        by_sequence = dict(zip(sequences, drafts, strict=True))
        prefilled = LaunchedPass(launched, num_rows, rows, by_sequence)
        self._advance(prefilled, self._choose(prefilled))  # all beams have the same keys: no moves

    @torch.inference_mode()
    def step(self) -> None:
        """Decode each live sequence's next token, and those that its draft predicted after it.

        Sequences admitted since a pass was launched ahead are not in it: they wait for the next
        step.
        """
        launched = self._pipeline.take() or self._launch()
        rows = self._slots.rows()
        chosen = self._choose(launched, is_step=True)
        sequences = list(launched.rows)
        moves = self._advance(launched, chosen)
        if chosen.ahead is not None:
            self._pipeline.put(LaunchedPass(chosen.ahead, self._slots.num_used, rows))
            redrawn = [sequences[place] for place in chosen.redrawn]
            self._roll_back([each for each in redrawn if not each.has_ended])
        elif moves:
            sources, targets = zip(*moves, strict=True)
            self._cache.reorder(sources, targets)

    def _launch(self) -> _Launched:
        """Launch a pass over the last tokens of all live sequences, and the drafts that pay."""
        last = self._slots.by_slot(lambda each: each.last_token_ids)
        owners = self._slots.slot_owners()
        drafts = self._engine.drafts(owners)
        tokens = [[token_id, *draft] for token_id, draft in zip(last, drafts, strict=True)]
        launched = self._engine.decode(tokens)
        by_slot = rows_of(drafts)
        rows: dict[LiveSequence, Sequence[int]] = {}
        for sequence, slots in self._slots.rows().items():
            rows[sequence] = list(chain.from_iterable(by_slot[slot] for slot in slots))
        by_sequence = dict(zip(owners, drafts, strict=True))
        return LaunchedPass(launched, len(tokens) * width_of(drafts), rows, by_sequence)

    def _choose(self, launched: _Launched, is_step: bool = False) -> Chosen[Any]:
        """Choose the next token of each row of each sequence of a pass."""
        conditions = [_PADDING] * launched.num_rows
        for sequence, rows in launched.rows.items():
            own = sequence.conditions(launched.drafts.get(sequence, ()))
            for row, each in zip(rows, own, strict=True):
                conditions[row] = each
        is_useful = is_step and not all(each.has_one_token_left for each in self.live)

        def following() -> NextInputs:
            rows = self._slots.rows()
            waiting = [each for each in rows if each not in launched.rows]
            return launched.next_inputs(rows, {each: each.last_token_ids for each in waiting})

        return self._engine.choose(
            launched.launched,
            conditions,
            list(launched.rows.values()),
            following if is_useful else None,
        )

    def _advance(self, launched: _Launched, chosen: Chosen[Any]) -> list[tuple[int, int]]:
        """Append chosen tokens, keep drafted ones; return the moves of beams, slot to slot."""
        moves: list[tuple[int, int]] = []
        accepted: list[tuple[int, int]] = []  # slot and number of drafted tokens
        for sequence, choices in zip(launched.rows, chosen.choices, strict=True):
            parents = sequence.advance(choices)
            if sequence.has_ended:
                continue
            slots = self._slots.of(sequence)
            pairs = [(slots[parent], slot) for parent, slot in zip(parents, slots, strict=True)]
            moves += [(source, target) for source, target in pairs if source != target]
            if sequence.num_accepted:
                accepted += [(slot, sequence.num_accepted) for slot in slots]
        if accepted:
            self._cache.accept(*zip(*accepted, strict=True))
        return moves

    def _roll_back(self, sequences: Sequence[LiveSequence]) -> None:
        """Remove `sequences` from the pass launched ahead."""
        for sequence in sequences:
            if self._pipeline.drop(sequence):
                for slot in self._slots.of(sequence):
                    self._cache.roll_back(slot)

    def remove_ended(self) -> list[LiveSequence]:
        """Free the slots of the sequences that have ended, and return these."""
        ended = [sequence for sequence in self.live if sequence.has_ended]
        self.remove(ended)
        return ended

    def remove(self, sequences: Sequence[LiveSequence]) -> None:
        """Free the slots of `sequences`; those without slots are ignored."""
        self._roll_back(sequences)
        for sequence in sequences:
            for freed in self._slots.free(sequence):
                if sequence.error is not None:
                    self._cache.clear(freed.slot)
                self._cache.free(freed.slot, freed.last)
                if freed.moved is not None and freed.moved in self._pipeline:
                    self._cache.roll_back(freed.last)

    def clear(self) -> None:
        self._slots.clear()
        self._pipeline.clear()


def start_sequence(request: SequenceRequest, rules: GenerationRules) -> LiveSequence:
    kind = SingleSequence if request.num_beams == 1 else BeamSequence
    return kind(request, rules)


def generate_all(
    decoder: Decoder, requests: Sequence[SequenceRequest], make_engine: NewEngine = new_engine
) -> list[GeneratedSequence]:
    """Generate `requests` in one batch, in order; raise the first `SequenceError`."""
    return [sequence.result() for sequence in generate_each(decoder, requests, make_engine)]


def generate_each(
    decoder: Decoder, requests: Sequence[SequenceRequest], make_engine: NewEngine = new_engine
) -> list[LiveSequence]:
    """Generate all `requests` in one batch and return the ended sequences in order, each with its
    result or error.
    """
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    batch = LiveBatch(decoder, sum(sequence.num_rows for sequence in sequences), make_engine)
    batch.admit(sequences)
    batch.remove_ended()
    while batch.live:
        batch.step()
        batch.remove_ended()
    return sequences
