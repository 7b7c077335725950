"""Decoders and references that are too large to be held in float32: they run layer by layer.

A layer's weights are read, converted and dropped at each use; the first layers stay in memory, as many as fit
`MAX_RESIDENT_BYTES`. The arithmetic is that of the whole model.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from export.resources import MAX_RESIDENT_BYTES
from runners.artifacts.manifest import Family, Precision
from runners.decoder.batch import Decoder
from runners.models.load import load_decoder
from runners.models.weights import DecoderWeights

LayerT = TypeVar("LayerT")

_FLOAT32_BYTES = 4


class StreamedWeights(DecoderWeights):
    """The weights of a decoder whose layers are built at each use."""

    __slots__ = ()
    max_resident_bytes: ClassVar[int] = MAX_RESIDENT_BYTES

    def layers(self, num_layers: int, build: Callable[[int, Self], LayerT]) -> Sequence[LayerT]:
        """Return a stack of layers; each is built of its index and its weights when it is read."""
        sizes = [self.at(f"layers.{index}").num_bytes for index in range(num_layers)]
        num_kept = sum(total <= self.max_resident_bytes for total in accumulate(sizes))
        return _StreamedLayers(num_layers, num_kept, lambda index: build(index, self.at(f"layers.{index}")))

    @property
    def num_bytes(self) -> int:
        """The size in float32."""
        own = (tensor for name, tensor in self.source.items() if name.startswith(self.prefix))
        return _FLOAT32_BYTES * sum(tensor.numel() for tensor in own)


def load_for_checks(
    folder: Path, family: Family, precision: Precision, is_large: bool, max_positions: int = 0
) -> Decoder[Any]:
    """Load a decoder onto the CPU; that of a large model in float32 runs layer by layer."""
    weights_of = StreamedWeights if is_large and precision == "float32" else DecoderWeights
    return load_decoder(folder, family, precision, "cpu", max_positions, weights_of)


class _StreamedLayers(Sequence[LayerT], Generic[LayerT]):
    """Layers that are built when they are read; the first `num_kept` once."""

    def __init__(self, num_layers: int, num_kept: int, build: Callable[[int], LayerT]) -> None:
        self._num_layers = num_layers
        self._build = build
        self._kept = [build(index) for index in range(num_kept)]

    def __getitem__(self, index: int) -> LayerT:  # type: ignore[override]  # no caller takes a slice
        return self._kept[index] if index < len(self._kept) else self._build(index)

    def __iter__(self) -> Iterator[LayerT]:
        return (self[index] for index in range(self._num_layers))

    def __len__(self) -> int:
        return self._num_layers
