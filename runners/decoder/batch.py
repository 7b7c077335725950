"""The batch of live sequences: different prompts and options together, each generated as if alone.

    admit           prefill new sequences into free slots, choose their first tokens
    step            choose the next token of every live sequence
    remove_ended    free the slots of sequences that ended; sequences in the last slots move there

Where steps are recorded, on a GPU, a step also launches the next pass of the model, before the host
knows the tokens that this pass reads: the device chooses them, and works while the host advances,
removes and admits sequences. A sequence admitted after the launch joins the next one; the pass is
rolled back for a sequence that has ended.

Uses a decoder through the `Decoder` protocol and knows no family. Shapes: B or R rows, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor

from runners.cuda_graphs.conditions import NextInputs
from runners.decoder.beams import BeamSequence
from runners.decoder.drafts import MAX_SLOTS, DraftedPass, paying, rows_of
from runners.decoder.protocol import CacheT, Decoder
from runners.decoder.sequences import (
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    SingleSequence,
)
from runners.tokens.rules import GenerationRules
from runners.tokens.token_choice import RowConditions, choose_tokens

_PADDING = RowConditions()  # of rows that no sequence reads


@dataclass(frozen=True, slots=True)
class LaunchedPass:
    """A pass of the model; `rows` are each sequence's rows of `logits` (R, V), whatever slots it
    has by now.
    """

    logits: Tensor
    rows: dict[LiveSequence, Sequence[int]]
    drafts: Mapping[LiveSequence, Sequence[int]] = field(default_factory=dict)
    is_recorded: bool = False


class LiveBatch(Generic[CacheT]):
    """The live sequences of one decoder, in slots 0 to n - 1.

    A sequence has one slot for each of its rows.
    """

    def __init__(self, decoder: Decoder[CacheT], num_slots: int) -> None:
        self._decoder = decoder
        self._num_slots = num_slots
        self._cache = decoder.new_cache(num_slots)
        self._recorded = decoder.recorded(self._cache)
        self._owners: list[LiveSequence] = []  # by slot
        self._slots: dict[LiveSequence, list[int]] = {}  # by sequence, in the order of its rows
        # beams to move before the next pass: slots, from and to
        self._moves: list[tuple[int, int]] = []
        self._ahead: LaunchedPass | None = None  # the next pass, launched by the last step

    @property
    def live(self) -> list[LiveSequence]:
        """The live sequences, in order of admission."""
        return list(self._slots)

    @property
    def num_used_slots(self) -> int:
        return len(self._owners)

    @property
    def num_free_slots(self) -> int:
        return self._num_slots - len(self._owners)

    @torch.inference_mode()
    def admit(self, sequences: Sequence[LiveSequence]) -> None:
        """Prefill sequences into free slots and choose their first tokens."""
        drafts = self._drafts(sequences, self._decoder.can_draft_first)
        first_slot = len(self._owners)
        for sequence in sequences:  # before what may fail, so that they are freed with the sequence
            self._slots[sequence] = [self._take_slot(sequence)]
        logits = self._decoder.prefill(
            self._cache, [s.request for s in sequences], first_slot, drafts
        )
        rows: dict[LiveSequence, Sequence[int]] = dict(zip(sequences, rows_of(drafts), strict=True))
        for sequence in sequences:
            self._add_beam_slots(sequence)
        self._choose_tokens(LaunchedPass(logits, rows, dict(zip(sequences, drafts, strict=True))))

    @torch.inference_mode()
    def step(self) -> None:
        """Decode the next token of every live sequence, and those after it that its draft
        predicted.

        Sequences admitted since a pass was launched ahead are not in it: they wait for the next
        step.
        """
        launched, self._ahead = self._ahead or self._launch(), None
        self._choose_tokens(launched)
        if self._ahead is not None and self._recorded is not None:
            has_set = self._recorded.has_set
            single = [each for each in self._ahead.rows if each.num_rows == 1]
            live = [each for each in single if not each.has_ended]
            self._roll_back(
                [each for each in live if not has_set(*self._slots[each], *each.last_token_ids)]
            )

    def _launch(self) -> LaunchedPass:
        """Launch a pass over the last tokens of all live sequences, and the drafts that pay."""
        last = [0] * len(self._owners)
        for sequence, slots in self._slots.items():
            for slot, token_id in zip(slots, sequence.last_token_ids, strict=True):
                last[slot] = token_id
        drafts = self._drafts(self._owners, self._decoder.can_draft)
        self._move_beams(last)
        if any(drafts):
            logits = self._decoder.decode_drafts(self._cache, DraftedPass(0, last, drafts))
        else:
            logits = self._decoder.decode_step(self._cache, torch.tensor(last))
        by_slot = rows_of(drafts)
        rows: dict[LiveSequence, Sequence[int]] = {
            sequence: [row for slot in slots for row in by_slot[slot]]
            for sequence, slots in self._slots.items()
        }
        is_recorded = self._recorded is not None and not any(drafts)
        return LaunchedPass(logits, rows, dict(zip(self._owners, drafts, strict=True)), is_recorded)

    def _look_ahead(self, inputs: NextInputs) -> None:
        """Launch the next pass with the tokens, and the moves of beams, that the device is choosing
        for `inputs`.
        """
        assert self._recorded is not None
        if moved := list(inputs.parents):
            self._decoder.reorder(self._cache, moved, moved, self._recorded.moves(len(moved)))
            self._moves.clear()
        logits = self._decoder.decode_step(
            self._cache, self._recorded.next_tokens[: len(self._owners)]
        )
        rows: dict[LiveSequence, Sequence[int]] = {
            sequence: list(slots) for sequence, slots in self._slots.items()
        }
        self._ahead = LaunchedPass(logits, rows, is_recorded=True)

    def _may_look_ahead(self) -> bool:
        """Return True unless the next pass is not recorded, as with adapters, or would certainly be
        superfluous.
        """
        has_adapters = any(sequence.request.adapter is not None for sequence in self._slots)
        return not has_adapters and not all(sequence.has_one_token_left for sequence in self._slots)

    def _roll_back(self, sequences: Sequence[LiveSequence]) -> None:
        """Remove `sequences` from the pass launched ahead."""
        for sequence in sequences:
            if self._ahead is not None and self._ahead.rows.pop(sequence, ()):
                for slot in self._slots[sequence]:
                    self._decoder.roll_back(self._cache, slot)
                self._ahead = self._ahead if self._ahead.rows else None

    def _drafts(self, sequences: Sequence[LiveSequence], can_draft: bool) -> list[Sequence[int]]:
        """Return the drafts that pay, one for each of `sequences`."""
        if not can_draft or len(sequences) > MAX_SLOTS:
            return [()] * len(sequences)
        return paying([sequence.propose() for sequence in sequences])

    def remove_ended(self) -> list[LiveSequence]:
        """Free the slots of the sequences that have ended, and return these."""
        ended = [sequence for sequence in self._slots if sequence.has_ended]
        self.remove(ended)
        return ended

    def remove(self, sequences: Sequence[LiveSequence]) -> None:
        """Free the slots of `sequences`; those without slots are ignored."""
        if any(sequence in self._slots for sequence in sequences):
            self._move_beams()
        self._roll_back(sequences)
        for sequence in sequences:
            for slot in sorted(self._slots.pop(sequence, ()), reverse=True):
                self._free(slot, sequence)

    def clear(self) -> None:
        """Free all slots."""
        self._owners.clear()
        self._slots.clear()
        self._moves.clear()
        self._ahead = None

    def _take_slot(self, sequence: LiveSequence) -> int:
        self._owners.append(sequence)
        return len(self._owners) - 1

    def _add_beam_slots(self, sequence: LiveSequence) -> None:
        """Give a sequence with several rows its other slots, as copies of the first."""
        slots = self._slots[sequence]
        others = [self._take_slot(sequence) for _ in range(sequence.num_rows - 1)]
        slots.extend(others)
        if others:
            self._decoder.add_beams(self._cache, slots[0], others)

    def _choose_tokens(self, launched: LaunchedPass) -> None:
        """Choose the next token of each row of each sequence of a pass."""
        rows = launched.rows
        drafts = launched.drafts
        logits = launched.logits
        own = {sequence: sequence.conditions(drafts.get(sequence, ())) for sequence in rows}
        conditions = {row: each for s in rows for row, each in zip(rows[s], own[s], strict=True)}
        by_row = [conditions.get(row, _PADDING) for row in range(len(logits))]
        if self._recorded is not None and launched.is_recorded:
            inputs = self._next_inputs(launched)
            look_ahead = partial(self._look_ahead, inputs) if self._may_look_ahead() else None
            choices = self._recorded.choose(logits, by_row, list(rows.values()), inputs, look_ahead)
        else:
            choices = choose_tokens(logits, by_row, list(rows.values()))
        have_moved = launched.is_recorded and self._ahead is not None
        accepted: list[tuple[int, int]] = []  # slot and number of drafted tokens
        for sequence, chosen in zip(rows, choices, strict=True):
            parents = sequence.advance(chosen)
            if not sequence.has_ended:
                slots = self._slots[sequence]
                moves = [
                    (slots[parent], to)
                    for parent, to in zip(parents, slots, strict=True)
                    if slots[parent] != to
                ]
                self._moves += [] if have_moved else moves
                accepted += [
                    (slot, sequence.num_accepted) for slot in slots if sequence.num_accepted
                ]
        if accepted:
            self._decoder.accept(self._cache, *zip(*accepted, strict=True))

    def _next_inputs(self, launched: LaunchedPass) -> NextInputs:
        """Return where each slot's next input comes from: a row of `launched`, or the host if it
        has none there.
        """
        tokens = [0] * len(self._owners)
        parents = dict[int, Sequence[int]]()
        for sequence, slots in self._slots.items():
            rows = launched.rows.get(sequence)
            own = rows or [~token_id for token_id in sequence.last_token_ids]
            for slot, row in zip(slots, own, strict=True):
                tokens[slot] = row
                if len(slots) > 1:
                    # after a prefill all beams have the same keys
                    parents[slot] = slots if rows else [slot]
        return NextInputs(tokens, parents)

    def _move_beams(self, next_tokens: Sequence[int] | None = None) -> None:
        """Let slots continue the beams that their rows chose.

        A recorded step's `next_tokens` are loaded with them.
        """
        on_device = None
        if self._recorded is not None and next_tokens is not None:
            on_device = self._recorded.load(next_tokens, self._moves)
        if self._moves:
            sources, targets = zip(*self._moves, strict=True)
            self._decoder.reorder(self._cache, sources, targets, on_device)
            self._moves.clear()

    def _free(self, slot: int, sequence: LiveSequence) -> None:
        """Free a slot of a removed sequence; the row in the last used slot moves there."""
        last = len(self._owners) - 1
        if sequence.error is not None:
            self._decoder.clear(self._cache, slot)
        owner = self._owners.pop()
        self._decoder.free(self._cache, slot, last)
        if slot != last:
            if self._ahead is not None and owner in self._ahead.rows:
                # what the pass has written there too: it may be NaN
                self._decoder.roll_back(self._cache, last)
            self._owners[slot] = owner
            own = self._slots[owner]
            own[own.index(last)] = slot


def start_sequence(request: SequenceRequest, rules: GenerationRules) -> LiveSequence:
    """Return the empty sequence of a request."""
    return (
        SingleSequence(request, rules) if request.num_beams == 1 else BeamSequence(request, rules)
    )


def generate_all(
    decoder: Decoder[Any], requests: Sequence[SequenceRequest]
) -> list[GeneratedSequence]:
    """Generate all `requests` in one batch and return them in order.

    Raise the first `SequenceError`.
    """
    return [sequence.result() for sequence in generate_each(decoder, requests)]


def generate_each(decoder: Decoder[Any], requests: Sequence[SequenceRequest]) -> list[LiveSequence]:
    """Generate all `requests` in one batch and return the ended sequences in order, each with its
    result or error.
    """
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    batch = LiveBatch(decoder, sum(sequence.num_rows for sequence in sequences))
    batch.admit(sequences)
    batch.remove_ended()
    while batch.live:
        batch.step()
        batch.remove_ended()
    return sequences
