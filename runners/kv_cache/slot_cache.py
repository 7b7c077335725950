"""The state of all sequences by slot, for every family.

    begin        give free slots to sequences and their beams, before their prefill; a captured one
                 writes what `claim` returns
    places       the places of a pass's tokens, and what they read; fixed for a captured pass
    grow         keep the token of each slot that a pass has stored
    accept       keep drafted tokens, too
    roll_back    remove the last token of a slot
    reorder      beams continue others of the same sequence
    add_beams    the keys of a sequence's first slot, for its beams, after the prefill
    free         free a slot; the sequence in the last one moves there
    clear        zero a slot

A pass stores keys and values at its places; only `grow` and `accept` count them, so that computing
a pass twice gives the same result. A paged cache changes this folder and what its users read from
`TokenPlaces`. Shapes: B rows, T tokens of a row, M moves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from runners.kv_cache.memory import KeyValueCache, SlotLengths, Slots
from runners.kv_cache.prefixes import PrefixCache, PrefixReads
from runners.kv_cache.shape import DecoderShape
from runners.staging import to_device

ValueT = TypeVar("ValueT")
# slot, tokens in it; prefix, place among its slots, tokens of the prefix
ClaimedSlot = tuple[int, int, int, int, int]
NUM_CLAIMED = 5


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """The tokens of a pass: their place in the cache and what they read, on the device."""

    token_ids: Tensor  # (B, T)
    slots: Slots
    positions: Tensor  # (B, T) in the slots
    length: int  # positions of self-attention that are read: the longest slot with these tokens
    prefixes: PrefixReads | None = None  # input of cross-attention
    prefix_length: int = 0  # the longest of these

    def rows(self) -> Tensor:
        """Return the slots (B, 1), on the device."""
        if isinstance(self.slots, Tensor):
            return self.slots[:, None]
        device = self.positions.device
        return torch.arange(self.slots.start, self.slots.stop, device=device)[:, None]


class SlotCache:
    """The slots of one decoder."""

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        self._shape = shape
        self.self_attention = KeyValueCache(shape, num_slots)
        self.prefixes = PrefixCache(shape, num_slots) if shape.has_prefixes else None
        self.num_tokens = SlotLengths(num_slots, shape.device)  # lengths of self-attention
        self._starts = [0] * num_slots  # position of each slot's first generated token
        self.adapters: list[str | None] = [None] * num_slots  # adapter of each slot

    @property
    def num_bytes(self) -> int:
        """The memory of keys and values."""
        of_prefixes = 0 if self.prefixes is None else self.prefixes.memory.num_bytes
        return self.self_attention.num_bytes + of_prefixes

    def begin(
        self,
        slots_of: Sequence[Sequence[int]],
        num_prefix_tokens: Sequence[int],
        adapters: Sequence[str | None],
    ) -> None:
        """Start sequences with `num_prefix_tokens` in the slots of each, which are free and follow
        all in use.
        """
        claimed = self.claim(slots_of, num_prefix_tokens, adapters)
        self.write_claimed(to_device(list(chain.from_iterable(claimed)), self._shape.device))

    def claim(
        self,
        slots_of: Sequence[Sequence[int]],
        num_prefix_tokens: Sequence[int],
        adapters: Sequence[str | None],
    ) -> list[list[ClaimedSlot]]:
        """Like `begin`, on the host only; return the slots of each sequence for
        `write_claimed`.
        """
        claimed: list[list[ClaimedSlot]] = []
        for slots, length, adapter in zip(slots_of, num_prefix_tokens, adapters, strict=True):
            prefix = 0
            in_slot = length
            if self.prefixes is not None:
                prefix = self.prefixes.table.add(slots)
                self.prefixes.lengths.set_on_host([prefix], [length])
                in_slot = 0
            self.num_tokens.set_on_host(slots, [in_slot] * len(slots))
            for slot in slots:
                self._starts[slot] = in_slot
                self.adapters[slot] = adapter
            own = [(slot, in_slot, prefix, place, length) for place, slot in enumerate(slots)]
            claimed.append(own)
        return claimed

    def write_claimed(self, claimed: Tensor) -> None:
        """Write claimed slots (B, 5) on the device; some may be repeated."""
        slots, in_slot, prefixes, places, lengths = claimed.T
        self.num_tokens.on_device[slots] = in_slot
        if self.prefixes is not None:
            self.prefixes.table.write(slots, prefixes, places)
            self.prefixes.lengths.on_device[prefixes] = lengths

    def places(self, tokens: Sequence[Sequence[int]], first_slot: int = 0) -> TokenPlaces:
        """Return the places of `tokens`, one or several for each of consecutive slots, after those
        that the slots hold.

        Shorter rows are padded with their last token, which is stored again at its own position.
        """
        slots = range(first_slot, first_slot + len(tokens))
        lengths = self.num_tokens.of(slots)
        width = max(map(len, tokens))
        token_ids = [[*own, *[own[-1]] * (width - len(own))] for own in tokens]
        positions = []
        for length, own in zip(lengths, tokens, strict=True):
            positions.append([length + min(index, len(own) - 1) for index in range(width)])
        both = to_device([token_ids, positions], self._shape.device)
        longest = 1 + max(map(max, positions))
        where = slice(slots.start, slots.stop)
        if self.prefixes is None:
            return TokenPlaces(both[0], where, both[1], longest)
        reads = self.prefixes.table.reads(where)
        return TokenPlaces(both[0], where, both[1], longest, reads, self.prefixes.length(slots))

    def fixed_places(
        self,
        token_ids: Tensor,
        length: int,
        num_prefixes: int,
        max_beams: int,
        prefix_length: int = 0,
    ) -> TokenPlaces:
        """Return the places of `token_ids` (B,) of slots 0 to B - 1 in a pass of fixed shape: it
        reads `length` positions, `prefix_length` of a prefix, and uses no value of the host.

        `num_prefixes`: that beams share, at most `max_beams` each; 0: each row has its own. A slot
        without a free position gets its last one overwritten.
        """
        slots = slice(0, len(token_ids))
        positions = self.num_tokens.on_device[slots, None].clamp(max=length - 1)
        if self.prefixes is None:
            return TokenPlaces(token_ids[:, None], slots, positions, length)
        reads = PrefixReads(slots)
        if num_prefixes:
            reads = self.prefixes.table.grouped(len(token_ids), num_prefixes, max_beams)
        return TokenPlaces(token_ids[:, None], slots, positions, length, reads, prefix_length)

    def shared_prefixes(self, num_slots: int) -> tuple[int, int]:
        """Return the number of prefixes that the first slots share and of slots that share one at
        most; 0 and 1 if slot i reads prefix i.
        """
        slots = slice(0, num_slots)
        if self.prefixes is None or self.prefixes.table.own(slots) == slots:
            return 0, 1
        return self.prefixes.table.num_prefixes, self.prefixes.table.width

    def grow(self, slots: range) -> None:
        """Keep the token that a pass has stored for each of `slots`."""
        self.num_tokens.increment(slots)

    def accept(self, slots: Sequence[int], num_tokens: Sequence[int]) -> None:
        """Keep the first `num_tokens` drafted in `slots`; the next pass overwrites the rest."""
        self.num_tokens.add(slots, num_tokens)

    def roll_back(self, slot: int) -> None:
        """Remove a slot's last token, added by a superfluous pass, and zero its keys and values."""
        last = self._shape.num_positions - 1  # where the token of a full slot is
        position = min(self.num_tokens.decrement(slot), last)
        self.self_attention.clear(slot, slice(position, position + 1))

    def clear(self, slot: int) -> None:
        """Zero a slot, so that its NaN cannot propagate into the next sequence."""
        self.self_attention.clear(slot)
        if self.prefixes is not None:
            self.prefixes.clear(slot)

    def add_beams(self, targets_of: Mapping[int, Sequence[int]]) -> None:
        """Add beams in `targets_of`, by the first slot of their sequence, after its prefill."""
        sources: list[int] = []
        targets: list[int] = []
        for source, own in targets_of.items():
            sources += [source] * len(own)
            targets += own
        if not targets:
            return
        self._copy(sources, targets)

    def add_fixed_beams(self, sources: Tensor, targets: Tensor) -> None:
        """Copy the keys of first tokens, in a captured prefill of a decoder with prefixes."""
        self.self_attention.copy((), (), slice(0, 1), torch.stack([sources, targets]))

    def free(self, slot: int, last: int) -> None:
        """Free a slot; the sequence in `last`, the last slot in use, moves there."""
        if self.prefixes is not None:
            self.prefixes.release(slot)
        if slot != last:
            if self.prefixes is not None:
                self.prefixes.table.move(last, slot)
            self._copy([last], [slot])

    def reorder(
        self, sources: Sequence[int], targets: Sequence[int], on_device: Tensor | None = None
    ) -> None:
        """Copy generated tokens from `sources` to `targets`, beams of the same sequences, pairwise.

        All are read before any is written. `on_device` are sources and targets (2, M) on the
        cache's device; only there, another slot of the sequence may be the source.
        """
        start = min(self._starts[slot] for slot in sources)
        generated = slice(start, max(self.num_tokens.of(sources)))
        self.self_attention.copy(sources, targets, generated, on_device)

    def _copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy everything but the prefixes of slots, pairwise."""
        held = slice(0, max(self.num_tokens.of(sources)))
        self.self_attention.copy(sources, targets, held)
        self.num_tokens.copy(sources, targets)
        _copy_values(self._starts, sources, targets)
        _copy_values(self.adapters, sources, targets)


def _copy_values(values: list[ValueT], sources: Sequence[int], targets: Sequence[int]) -> None:
    """Copy values pairwise; all are read before any is written."""
    copied = [values[source] for source in sources]
    for target, value in zip(targets, copied, strict=True):
        values[target] = value
