"""The state of all sequences by slot, for every family: keys, values and lengths, allocated once.

A slot holds one sequence, at its first positions and without gaps. Live sequences always occupy
slots 0 to n - 1, so that a step reads a plain slice. A pass stores keys and values at its places,
which `num_tokens` counts afterwards: computing a pass twice gives the same result.

Cross-attention reads prefixes, image and prompt, stored once for all beams of a sequence. Live
prefixes have the numbers 0 to S - 1; a pass over shared ones groups its rows by prefix, so that
attention reads the keys of each once.

Shapes: B rows, T tokens of a row, M moves, S prefixes, W places of a prefix, one for each beam, A
key-value heads, P positions, D head size.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.errors import SequenceError

Slots = slice | Tensor  # consecutive ones, or their numbers (B,) on the device


# A copy from ordinary memory waits for all work that is queued on the device. From pinned memory it
# is queued, too; torch reuses that memory only after the copy.
def to_device(numbers: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return nested sequences of numbers as a tensor on `device`."""
    host = torch.tensor(numbers, dtype=dtype)
    if torch.device(device).type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def array_into(target: Tensor, array: NDArray[Any]) -> None:
    host = torch.from_numpy(array)
    if target.is_cuda:
        host = host.pin_memory()
    target.copy_(host, non_blocking=True)


@cache
def decoder_stream() -> torch.cuda.Stream:
    # before encoders, whose streams have the least priority, 0
    return torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]  # no types


def use_decoder_stream(device: torch.device | str) -> None:
    """On a GPU, let this thread use the decoder's stream, after its own work so far."""
    if torch.device(device).type == "cuda":
        decoder_stream().wait_stream(torch.cuda.current_stream())
        torch.cuda.set_stream(decoder_stream())


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The dimensions of keys and values, and the size of the vocabulary.

    With `has_prefixes`, cross-attention reads image and prompt, which have separate positions;
    otherwise image, prompt and answer share the positions of self-attention.
    """

    num_layers: int
    num_heads: int  # heads of keys and values
    num_positions: int  # positions of a slot
    head_size: int
    num_tokens: int  # size of the vocabulary
    dtype: torch.dtype
    device: torch.device
    has_prefixes: bool = False
    num_image_tokens: int = 0  # one image; 0: unknown

    @property
    def min_length(self) -> int:
        """The positions of self-attention that every sequence takes at least."""
        return 0 if self.has_prefixes else self.num_image_tokens

    @property
    def slot_bytes(self) -> int:
        num_values = 2 * self.num_layers * self.num_heads * self.num_positions * self.head_size
        return num_values * self.dtype.itemsize * (1 + self.has_prefixes)

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        """Return how many tokens fit after these; raise `SequenceError` if none does."""
        limit = self.num_positions if self.has_prefixes else self.num_positions - 1
        if num_prefix_tokens > limit:
            message = (
                f"image and prompt have {num_prefix_tokens} tokens; at most {limit} are allowed"
            )
            raise SequenceError("sequence_too_long", message)
        return limit if self.has_prefixes else self.num_positions - num_prefix_tokens


@dataclass(frozen=True, slots=True)
class PrefixReads:
    """The prefixes that a pass reads; row i reads prefix i if there are no `rows` and `places`."""

    prefixes: Slots
    length: int  # the longest of these
    rows: Tensor | None = None  # (S, W) the row in each place; of an empty place, any
    places: Tensor | None = None  # (B,) of each row among the S * W


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """The tokens of a pass: their place in the cache and what they read, on the device."""

    token_ids: Tensor  # (B, T)
    slots: Slots
    positions: Tensor  # (B, T) in the slots
    length: int  # positions of self-attention that are read: the longest slot with these tokens
    prefixes: PrefixReads | None = None  # input of cross-attention


class KeyValueCache:
    """Keys and values of all layers of one attention, by slot."""

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        positions = (shape.num_heads, shape.num_positions, shape.head_size)
        size = (shape.num_layers, 2, num_slots, *positions)
        self._numbers = torch.arange(num_slots, device=shape.device)[:, None]  # of the slots
        if shape.device.type == "cpu":  # pages are allocated when first written, as most never are
            pages = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
            self._memory = torch.from_numpy(pages).view(shape.dtype).view(size)
        else:
            self._memory = torch.zeros(size, dtype=shape.dtype, device=shape.device)

    def write_prefix(self, layer: int, slots: Slots, keys_and_values: Tensor) -> None:
        """Store `keys_and_values` (B, P, 2, A, D) from position 0 of `slots`, padding too."""
        stored = keys_and_values.permute(2, 0, 3, 1, 4)
        self._memory[layer, :, slots, :, : keys_and_values.shape[1]] = stored

    def extend(
        self, layer: int, places: TokenPlaces, keys_and_values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store `keys_and_values` (B, T, 2, A, D) of a pass's tokens, each at its own position.

        Return the keys and values (B, A, P, D) that the tokens attend to.
        """
        slots = places.slots
        rows = slots[:, None] if isinstance(slots, Tensor) else self._numbers[slots]
        self._memory[layer][:, rows, :, places.positions] = keys_and_values
        return self.read(layer, slots, places.length)

    def read(self, layer: int, slots: Slots, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, A, num_positions, D): views, if `slots` are consecutive."""
        keys, values = self._memory[layer, :, slots, :, :num_positions]
        return keys, values

    def clear(self, slot: int, positions: slice = slice(None)) -> None:
        """Zero positions of a slot: a masked NaN would still reach the slot's next sequence."""
        self._memory[:, :, slot, :, positions] = 0

    def copy(self, source: int, target: int, positions: slice) -> None:
        """Copy `positions` of a slot, without a gather."""
        self._memory[:, :, target, :, positions] = self._memory[:, :, source, :, positions]

    def copy_pairs(self, pairs: Tensor, positions: slice) -> None:
        """Copy `positions` of slots, sources and targets (2, M), all read before any is written."""
        view = self._memory[:, :, :, :, positions]
        view.index_copy_(2, pairs[1], view.index_select(2, pairs[0]))


class SlotLengths:
    """The number of tokens in each slot: on the host, which chooses shapes by it, and on the
    device, which masks by it. Both change together: no step waits for a length.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.on_device = torch.zeros(num_slots, dtype=torch.long, device=device)  # (slots,)
        self.on_host = [0] * num_slots

    def set(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        for slot, length in zip(slots, lengths, strict=True):
            self.on_host[slot] = length
        indices, values = to_device([list(slots), list(lengths)], self.on_device.device)
        self.on_device[indices] = values

    def increment(self, slots: range) -> None:
        for slot in slots:
            self.on_host[slot] += 1
        self.on_device[slots.start : slots.stop].add_(1)

    def copy(self, source: int, target: int) -> None:
        """Copy without a transfer, which would wait for the device."""
        self.on_host[target] = self.on_host[source]
        self.on_device[target] = self.on_device[source]


_NO_PREFIX = -1


class PrefixCache:
    """Keys and values of cross-attention, by prefix, and which slot reads which: on the host, and
    on the device, for captured steps. Both change together, and nothing waits for the device.
    """

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        self.memory = KeyValueCache(shape, num_slots)
        self.lengths = SlotLengths(num_slots, shape.device)  # image and prompt
        self.of_slot = [_NO_PREFIX] * num_slots
        self._slots: list[dict[int, int]] = []  # slots of each prefix, with their places
        device = shape.device
        self._prefixes = torch.zeros(num_slots, dtype=torch.long, device=device)  # (slots,)
        self._places = torch.zeros_like(self._prefixes)
        # (prefixes, places)
        self._rows = torch.zeros(num_slots, num_slots, dtype=torch.long, device=device)

    @property
    def num_prefixes(self) -> int:
        return len(self._slots)

    @property
    def width(self) -> int:
        return max(max(places.values()) for places in self._slots) + 1

    def add(self, slots: Sequence[int], length: int) -> int:
        """Return the number of a new prefix for free slots, by place; `write` has to follow."""
        if slots[0] == 0:  # whatever a failed pass has left
            self._slots = []
            self.of_slot = [_NO_PREFIX] * len(self.of_slot)
        for slot in slots:
            self.of_slot[slot] = len(self._slots)
        self.lengths.on_host[len(self._slots)] = length
        self._slots.append({slot: place for place, slot in enumerate(slots)})
        return len(self._slots) - 1

    def write(self, slots: Tensor, prefixes: Tensor, places: Tensor, lengths: Tensor) -> None:
        """Write prefix, place and length of added slots, (B,) each, on the device."""
        self._prefixes[slots] = prefixes
        self._places[slots] = places
        self._rows[prefixes, places] = slots
        self.lengths.on_device[prefixes] = lengths

    def move(self, source: int, target: int) -> None:
        """Give the place of `source` to `target`, a free slot."""
        prefix = self.of_slot[source]
        if prefix != _NO_PREFIX:
            self.of_slot[source] = _NO_PREFIX
            self._put(target, prefix, self._slots[prefix].pop(source))

    def release(self, slot: int) -> None:
        """Free a slot; if its prefix ends, the last one gets its number."""
        prefix = self.of_slot[slot]
        if prefix == _NO_PREFIX:
            return
        self.of_slot[slot] = _NO_PREFIX
        del self._slots[prefix][slot]
        if self._slots[prefix]:
            return
        last_slots = self._slots.pop()
        last = len(self._slots)
        if prefix == last:
            return
        self._slots[prefix] = {}
        for moved, place in last_slots.items():
            self._put(moved, prefix, place)
        self.memory.copy(last, prefix, slice(0, self.lengths.on_host[last]))
        self.lengths.copy(last, prefix)

    def _put(self, slot: int, prefix: int, place: int) -> None:
        self.of_slot[slot] = prefix
        self._slots[prefix][slot] = place
        self._prefixes[slot] = prefix
        self._places[slot] = place
        self._rows[prefix, place] = slot

    def reads(self, slots: slice) -> PrefixReads:
        """Return what the rows of a pass over `slots` read."""
        prefixes = self.of_slot[slots]
        length = max(self.lengths.on_host[prefix] for prefix in prefixes)
        end = prefixes[0] + len(prefixes)
        if prefixes == [*range(prefixes[0], end)]:  # one per slot, in their order
            return PrefixReads(slice(prefixes[0], end), length)
        return self.grouped(slots.stop, self.num_prefixes, self.width, length)

    def grouped(self, num_rows: int, num_prefixes: int, width: int, length: int) -> PrefixReads:
        """Return what rows from slot 0 on read; there may be fewer prefixes and places."""
        width = min(width, self._rows.shape[1])
        rows = self._rows[:num_prefixes, :width].clamp(max=num_rows - 1)
        places = self._prefixes[:num_rows] * width + self._places[:num_rows]
        places = places.clamp(max=num_prefixes * width - 1)
        return PrefixReads(slice(0, num_prefixes), length, rows, places)


# slot, tokens in it; prefix, place among its slots, tokens of the prefix
ClaimedSlot = tuple[int, int, int, int, int]
NUM_CLAIMED = 5


class SlotCache:
    """The slots of one decoder."""

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        self._shape = shape
        self.self_attention = KeyValueCache(shape, num_slots)
        self.prefixes = PrefixCache(shape, num_slots) if shape.has_prefixes else None
        self.num_tokens = SlotLengths(num_slots, shape.device)  # lengths of self-attention
        self._starts = [0] * num_slots  # position of each slot's first generated token
        self.adapters: list[str | None] = [None] * num_slots  # adapter of each slot

    def claim(
        self,
        slots_of: Sequence[Sequence[int]],
        num_prefix_tokens: Sequence[int],
        adapters: Sequence[str | None],
    ) -> list[list[ClaimedSlot]]:
        """Start sequences in the free slots after all used, on the host; then `write_claimed`."""
        claimed: list[list[ClaimedSlot]] = []
        for slots, length, adapter in zip(slots_of, num_prefix_tokens, adapters, strict=True):
            prefix = 0
            in_slot = length
            if self.prefixes is not None:
                prefix = self.prefixes.add(slots, length)
                in_slot = 0
            for slot in slots:
                self.num_tokens.on_host[slot] = in_slot
                self._starts[slot] = in_slot
                self.adapters[slot] = adapter
            rows = [(slot, in_slot, prefix, place, length) for place, slot in enumerate(slots)]
            claimed.append(rows)
        return claimed

    def write_claimed(self, claimed: Tensor) -> None:
        """Write claimed slots (B, 5) on the device; some may be repeated."""
        slots, in_slot, prefixes, places, lengths = claimed.T
        self.num_tokens.on_device[slots] = in_slot
        if self.prefixes is not None:
            self.prefixes.write(slots, prefixes, places, lengths)

    def places(self, tokens: Sequence[Sequence[int]], first_slot: int = 0) -> TokenPlaces:
        """Return the places of tokens of consecutive slots, after those that the slots hold.

        Shorter rows are padded with their last token, which is stored again at its own position.
        """
        slots = slice(first_slot, first_slot + len(tokens))
        width = max(map(len, tokens))
        token_ids: list[list[int]] = []
        positions: list[list[int]] = []
        for length, row in zip(self.num_tokens.on_host[slots], tokens, strict=True):
            num_padding = width - len(row)
            last = length + len(row) - 1
            token_ids.append([*row, *[row[-1]] * num_padding])
            positions.append([*range(length, last + 1), *[last] * num_padding])
        both = to_device([token_ids, positions], self._shape.device)
        longest = 1 + max(map(max, positions))
        reads = None if self.prefixes is None else self.prefixes.reads(slots)
        return TokenPlaces(both[0], slots, both[1], longest, reads)

    def fixed_places(
        self,
        token_ids: Tensor,
        length: int,
        num_prefixes: int,
        max_beams: int,
        prefix_length: int = 0,
    ) -> TokenPlaces:
        """Return the places of `token_ids` (B,) of slots 0 to B - 1 without any value of the host.

        `num_prefixes`: that beams share, at most `max_beams` each; 0: each row has its own. A slot
        without a free position gets its last one overwritten.
        """
        slots = slice(0, len(token_ids))
        positions = self.num_tokens.on_device[slots, None].clamp(max=length - 1)
        reads = None
        if self.prefixes is not None and num_prefixes:
            reads = self.prefixes.grouped(len(token_ids), num_prefixes, max_beams, prefix_length)
        elif self.prefixes is not None:
            reads = PrefixReads(slots, prefix_length)
        return TokenPlaces(token_ids[:, None], slots, positions, length, reads)

    def shared_prefixes(self, num_slots: int) -> tuple[int, int]:
        """Return the shared prefixes and their most slots; 0 and 1 if slot i reads prefix i."""
        if self.prefixes is None or self.prefixes.of_slot[:num_slots] == [*range(num_slots)]:
            return 0, 1
        return self.prefixes.num_prefixes, self.prefixes.width

    def accept(self, num_accepted: Mapping[int, int]) -> None:
        """Keep the first drafted tokens of slots; the next pass overwrites the rest."""
        slots = list(num_accepted)
        lengths = [self.num_tokens.on_host[slot] + num_accepted[slot] for slot in slots]
        self.num_tokens.set(slots, lengths)

    def roll_back(self, slot: int) -> None:
        """Remove a slot's last token, added by a superfluous pass, and zero its keys and values."""
        self.num_tokens.on_host[slot] -= 1
        self.num_tokens.on_device[slot].sub_(1)
        last = self._shape.num_positions - 1  # where the token of a full slot is
        position = min(self.num_tokens.on_host[slot], last)
        self.self_attention.clear(slot, slice(position, position + 1))

    def clear(self, slot: int) -> None:
        """Zero a slot, so that its NaN cannot propagate into the next sequence."""
        self.self_attention.clear(slot)
        if self.prefixes is not None and self.prefixes.of_slot[slot] != _NO_PREFIX:
            self.prefixes.memory.clear(self.prefixes.of_slot[slot])

    def add_beams(self, slots_of: Sequence[Sequence[int]]) -> None:
        """Copy the first slot of each sequence to its other ones, after its prefill."""
        sources: list[int] = []
        targets: list[int] = []
        for first, *beams in slots_of:
            sources += [first] * len(beams)
            targets += beams
        if targets:
            tokens = slice(0, max(self.num_tokens.on_host[slot] for slot in sources))
            pairs = to_device([sources, targets], self._shape.device)
            self.self_attention.copy_pairs(pairs, tokens)

    def free(self, slot: int, last: int) -> None:
        """Free a slot; the sequence in `last`, the last slot in use, moves there."""
        if self.prefixes is not None:
            self.prefixes.release(slot)
            self.prefixes.move(last, slot)
        if slot == last:
            return
        self.self_attention.copy(last, slot, slice(0, self.num_tokens.on_host[last]))
        self.num_tokens.copy(last, slot)
        self._starts[slot] = self._starts[last]
        self.adapters[slot] = self.adapters[last]

    def reorder(
        self, sources: Sequence[int], targets: Sequence[int], on_device: Tensor | None = None
    ) -> None:
        """Copy generated tokens between beams of the same sequences, pairwise; all are read before
        any is written. Only `on_device` (2, M), other slots of a sequence may be sources.
        """
        start = min(self._starts[slot] for slot in sources)
        generated = slice(start, max(self.num_tokens.on_host[slot] for slot in sources))
        if on_device is None:
            on_device = to_device([sources, targets], self._shape.device)
        self.self_attention.copy_pairs(on_device, generated)
