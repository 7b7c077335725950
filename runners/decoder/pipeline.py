"""Passes of the model between their launch and the choice of their tokens.

Problem: a device computes a pass while the host still works on the tokens of the one before. In
that time sequences end, leave, move to other slots and are admitted; what the pass has computed for
them must neither reach an answer nor another sequence.

Solution: a launched pass keeps the rows that it was launched with, by sequence. At most one is in
flight ahead, launched over tokens that only the device knows. The states of a pass:

    launched ──> chosen for             its tokens extend the sequences that still have rows in it
        │  └───> rolled back, by row    the row's sequence ended, was cancelled or failed, or the
        │                               device read a token that the host has replaced
        └──────> dropped                a failed step: all slots are free

Invariants:
- rows are fixed at launch; slots may have moved since, and are looked up when tokens are stored;
- a sequence that is not in a pass, admitted after its launch, waits for the next one: its last
  token is known to the host;
- before a slot is freed, its sequence is rolled back: the length of the slot is that of its answer;
- when a row moves to a freed slot while a pass is in flight, the place that it leaves is rolled
  back, too: the pass may have written NaN there, and a masked NaN reaches the slot's next sequence;
- a pass without rows is not chosen for.

Knows neither torch nor sequences: they are only compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from runners.tokens.conditions import NextInputs

SequenceT = TypeVar("SequenceT")
PassT = TypeVar("PassT")


@dataclass(frozen=True, slots=True)
class LaunchedPass(Generic[SequenceT, PassT]):
    """A pass of the engine, `num_rows` rows of logits, and which are those of each sequence."""

    launched: PassT
    num_rows: int
    rows: dict[SequenceT, Sequence[int]]
    drafts: Mapping[SequenceT, Sequence[int]] = field(default_factory=dict)

    def next_inputs(
        self,
        slots: Mapping[SequenceT, Sequence[int]],
        last_tokens: Mapping[SequenceT, Sequence[int]],
    ) -> NextInputs:
        """Return the inputs of a pass over `slots`, launched before this pass's tokens are known.

        `last_tokens` are those of the sequences without rows in this pass.
        """
        num_slots = sum(map(len, slots.values()))
        rows: list[int | None] = [None] * num_slots
        tokens = [0] * num_slots
        parents = dict[int, Sequence[int]]()
        for sequence, own in slots.items():
            for place, slot in enumerate(own):
                if sequence in self.rows:
                    rows[slot] = self.rows[sequence][place]
                else:
                    tokens[slot] = last_tokens[sequence][place]
                if len(own) > 1:
                    # after a prefill all beams have the same keys
                    parents[slot] = own if sequence in self.rows else [slot]
        return NextInputs(rows, tokens, parents)


class Pipeline(Generic[SequenceT, PassT]):
    """The pass that was launched ahead, if any."""

    def __init__(self) -> None:
        self._ahead: LaunchedPass[SequenceT, PassT] | None = None

    def put(self, ahead: LaunchedPass[SequenceT, PassT]) -> None:
        """Add a pass launched ahead; the one before must have been taken."""
        assert self._ahead is None
        self._ahead = ahead

    def take(self) -> LaunchedPass[SequenceT, PassT] | None:
        """Remove and return the pass launched ahead, to choose its tokens."""
        ahead, self._ahead = self._ahead, None
        return ahead

    def __contains__(self, sequence: SequenceT) -> bool:
        return self._ahead is not None and sequence in self._ahead.rows

    def drop(self, sequence: SequenceT) -> bool:
        """Remove a sequence from the pass launched ahead.

        Return True if it was there: the caller rolls back the last token of its slots.
        """
        if self._ahead is None or sequence not in self._ahead.rows:
            return False
        del self._ahead.rows[sequence]
        if not self._ahead.rows:
            self._ahead = None
        return True

    def clear(self) -> None:
        self._ahead = None
