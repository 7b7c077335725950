"""Keys, values and lengths of all slots, allocated once, and the shapes of a decoder.

A slot holds one sequence, at its first positions and without gaps. Live sequences always occupy
slots 0 to n - 1, so that a step reads a plain slice. Shapes: A key-value heads, P positions, D head
size, B rows of a batch, T tokens of a row, M moves.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runners.errors import SequenceError
from runners.staging import to_device


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
            raise SequenceError(
                "sequence_too_long",
                f"image and prompt have {num_prefix_tokens} tokens; at most {limit} are allowed",
            )
        return limit if self.has_prefixes else self.num_positions - num_prefix_tokens


Slots = slice | Tensor  # consecutive ones, or their numbers (B,) on the device


class KeyValueCache:
    """Keys and values of all layers of one attention, by slot."""

    def __init__(self, shape: DecoderShape, num_slots: int) -> None:
        positions = (shape.num_heads, shape.num_positions, shape.head_size)
        size = (shape.num_layers, 2, num_slots, *positions)
        if shape.device.type == "cpu":  # pages are allocated when first written, as most never are
            pages = np.zeros(math.prod(size) * shape.dtype.itemsize, dtype=np.uint8)
            self._memory = torch.from_numpy(pages).view(shape.dtype).view(size)
        else:
            self._memory = torch.zeros(size, dtype=shape.dtype, device=shape.device)

    @property
    def num_bytes(self) -> int:
        return self._memory.nbytes

    def write_prefix(self, layer: int, slots: Slots, keys_and_values: Tensor) -> None:
        """Store `keys_and_values` (B, S, 2, A, D) from position 0 of `slots`, padding too."""
        stored = keys_and_values.permute(2, 0, 3, 1, 4)
        self._memory[layer, :, slots, :, : keys_and_values.shape[1]] = stored

    def append(self, layer: int, rows: Tensor, positions: Tensor, keys_and_values: Tensor) -> None:
        """Store `keys_and_values` (B, T, 2, A, D) of the slots `rows` (B, 1), each at its own
        position (B, T).
        """
        self._memory[layer][:, rows, :, positions] = keys_and_values

    def read(self, layer: int, slots: Slots, num_positions: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, A, num_positions, D): views, if `slots` are consecutive."""
        keys, values = self._memory[layer, :, slots, :, :num_positions]
        return keys, values

    def clear(self, slot: int, positions: slice = slice(None)) -> None:
        """Zero positions of a slot: a masked NaN would still reach the slot's next sequence."""
        self._memory[:, :, slot, :, positions] = 0

    def copy(
        self,
        sources: Sequence[int],
        targets: Sequence[int],
        positions: slice,
        on_device: Tensor | None = None,
    ) -> None:
        """Copy `positions` of the slots `sources` to `targets`, pairwise.

        All are read before any is written. `on_device` are sources and targets (2, M) on the
        cache's device, which need not be copied there.
        """
        view = self._memory[:, :, :, :, positions]
        if on_device is not None:
            view.index_copy_(2, on_device[1], view.index_select(2, on_device[0]))
        elif len(sources) == 1:  # a plain copy, without a gather
            view[:, :, targets[0]] = view[:, :, sources[0]]
        else:
            source, target = to_device([sources, targets], self._memory.device)
            view[:, :, target] = view[:, :, source]


class SlotLengths:
    """The number of tokens in each slot: on the host, which chooses shapes by it, and on the
    device, which masks by it.

    Both change together, so that no step waits for the device to tell a length.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.on_device = torch.zeros(num_slots, dtype=torch.long, device=device)  # (slots,)
        self._on_host = [0] * num_slots

    def of(self, slots: Iterable[int]) -> list[int]:
        return [self._on_host[slot] for slot in slots]

    def set(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self.set_on_host(slots, lengths)
        indices, values = to_device([list(slots), list(lengths)], self.on_device.device)
        self.on_device[indices] = values

    def set_on_host(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Set lengths that a pass writes on the device."""
        for slot, length in zip(slots, lengths, strict=True):
            self._on_host[slot] = length

    def add(self, slots: Sequence[int], amounts: Sequence[int]) -> None:
        self.set(slots, list(map(operator.add, self.of(slots), amounts)))

    def increment(self, slots: range) -> None:
        for slot in slots:
            self._on_host[slot] += 1
        self.on_device[slots.start : slots.stop].add_(1)

    def decrement(self, slot: int) -> int:
        """Remove the last token of a slot, and return its position."""
        self._on_host[slot] -= 1
        self.on_device[slot].sub_(1)
        return self._on_host[slot]

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        if len(sources) == 1:  # without a transfer, which would wait for the device
            self._on_host[targets[0]] = self._on_host[sources[0]]
            self.on_device[targets[0]] = self.on_device[sources[0]]
        else:
            self.set(targets, self.of(sources))
