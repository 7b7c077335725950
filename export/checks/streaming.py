"""Decoders and references that are too large to be held in float32: they run layer by layer.

A layer's weights are read and converted at each use, into the memory of the layer before it; the
first layers stay in memory, as many as fit `MAX_RESIDENT_BYTES`. The arithmetic is that of the
whole model.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

from torch import Tensor

from export.resources import MAX_RESIDENT_BYTES
from runners.decoder.protocol import Decoder
from runners.models.linear import Linear, PackedLinear, can_pack
from runners.models.load import load_decoder
from runners.models.weights import DecoderWeights
from wire.artifacts.manifest import Family, Precision

LayerT = TypeVar("LayerT")

_FLOAT32_BYTES = 4
_LAYER_INDEX = re.compile(r"(?<=\blayers\.)\d+")

Buffers = dict[tuple[str, ...], Tensor]  # keyed by names in a layer


@dataclass(frozen=True, slots=True)
class StreamedWeights(DecoderWeights):
    """The weights of a decoder whose layers are built at each use."""

    max_resident_bytes: ClassVar[int] = MAX_RESIDENT_BYTES
    buffers: Buffers | None = None  # None: of what stays in memory

    def layers(self, num_layers: int, build: Callable[[int, Self], LayerT]) -> Sequence[LayerT]:
        """Return a stack of layers; each is built of its index and its weights when it is read."""
        sizes = [self.at(f"layers.{index}").num_bytes for index in range(num_layers)]
        num_kept = sum(total <= self.max_resident_bytes for total in accumulate(sizes))
        streamed = replace(self, buffers={})

        def build_one(index: int) -> LayerT:
            return build(index, (self if index < num_kept else streamed).at(f"layers.{index}"))

        return _StreamedLayers(num_layers, num_kept, build_one)

    @property
    def num_bytes(self) -> int:
        """The size in float32."""
        own = (tensor for name, tensor in self.source.items() if name.startswith(self.prefix))
        return _FLOAT32_BYTES * sum(tensor.numel() for tensor in own)

    def _allocate(self, names: Sequence[str], shape: Sequence[int]) -> Tensor:
        if self.buffers is None:
            return DecoderWeights._allocate(self, names, shape)
        place = _LAYER_INDEX.sub("", self.prefix), *names
        if place not in self.buffers:
            self.buffers[place] = DecoderWeights._allocate(self, names, shape)
        return self.buffers[place]

    def _linear_of(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Return a layer that reads `weight` itself: packing costs more than a step's products."""
        if self.buffers is None or not can_pack(weight):
            return DecoderWeights._linear_of(self, weight, bias)
        return PackedLinear.view(weight, bias)


def load_for_checks(
    folder: Path, family: Family, precision: Precision, is_large: bool, max_positions: int = 0
) -> Decoder:
    """Load a decoder onto the CPU; that of a large model in float32 runs layer by layer."""
    weights_of = StreamedWeights if is_large and precision == "float32" else DecoderWeights
    return load_decoder(folder, family, precision, "cpu", max_positions, weights_of)


class _StreamedLayers(Sequence[LayerT], Generic[LayerT]):
    """Layers that are built when they are read; the first `num_kept` once."""

    def __init__(self, num_layers: int, num_kept: int, build: Callable[[int], LayerT]) -> None:
        self._num_layers = num_layers
        self._build = build
        self._kept = [build(index) for index in range(num_kept)]

    # no caller takes a slice
    def __getitem__(self, index: int) -> LayerT:  # type: ignore[override]
        return self._kept[index] if index < len(self._kept) else self._build(index)

    def __iter__(self) -> Iterator[LayerT]:
        return (self[index] for index in range(self._num_layers))

    def __len__(self) -> int:
        return self._num_layers
