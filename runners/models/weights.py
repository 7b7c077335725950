"""A decoder's weights, each read from the artifact straight to the dtype and the device that it runs in.

The file is mapped for one tensor at a time: a mapping that stays keeps every page that was read beside the weights.
No module of transformers is built, so that what is joined or rounded is in memory once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open
from torch import Tensor

from runners.artifacts.manifest import Precision
from runners.models.int8 import Int8Linear
from runners.models.layers import FloatLinear, LayerNorm, Linear
from runners.models.packed_linear import PackedLinear, can_pack

_LANGUAGE_MODEL = "model.language_model."  # in the names of Florence-2's and PaliGemma's checkpoints
_DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "int8": torch.float32,  # of what is no matrix, and of what flows between the layers
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The tensors of `source` whose names begin with `prefix`; what is read is a copy."""

    source: Mapping[str, Tensor]
    precision: Precision
    device: torch.device
    prefix: str = ""

    @classmethod
    def open(cls, file: Path, precision: Precision, device: str) -> Self:
        """Return the language model's weights of a decoder's safetensors file; none is read yet."""
        return cls(_FileTensors.open(file), precision, torch.device(device), _LANGUAGE_MODEL)

    def at(self, name: str) -> Self:
        """Return the weights of a part."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """Say whether there is such a tensor."""
        return self.prefix + name in self.source

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        return self._join([name])

    def linear(self, *names: str) -> Linear:
        """Read several layers of one input as one, their outputs side by side."""
        weight = self._join([f"{name}.weight" for name in names])
        biases = [f"{name}.bias" for name in names if self.has(f"{name}.bias")]
        return self._linear_of(weight, self._join(biases) if biases else None)

    def output_head(self, embeddings: Tensor) -> Linear:
        """Return the layer that gives logits: the checkpoint's own, or the matrix of `embeddings` if they are tied."""
        whole = replace(self, prefix="")
        if whole.has("lm_head.weight"):
            return whole.linear("lm_head")
        is_packed = self.precision != "int8" and can_pack(embeddings)
        return PackedLinear.view(embeddings) if is_packed else self._linear_of(embeddings)

    def layer_norm(self, name: str, epsilon: float) -> LayerNorm:
        """Read a norm."""
        return LayerNorm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), epsilon)

    def _linear_of(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        if self.precision == "int8":
            return Int8Linear.of(weight, bias)
        return PackedLinear.of(weight, bias) if can_pack(weight) else FloatLinear(weight, bias)

    def _join(self, names: Sequence[str]) -> Tensor:
        """Read tensors one below the other."""
        keys = [self.prefix + name for name in names]
        sizes = [len(self.source[key]) for key in keys]
        shape = (sum(sizes), *self.source[keys[0]].shape[1:])
        joined = torch.empty(shape, dtype=_DTYPES[self.precision], device=self.device)
        for key, part in zip(keys, torch.split(joined, sizes), strict=True):
            part.copy_(self.source[key])
        return joined


class _FileTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file; whoever drops one drops its mapping too."""

    def __init__(self, file: Path, names: frozenset[str]) -> None:
        self._file = file
        self._names = names

    @classmethod
    def open(cls, file: Path) -> Self:
        """Read the names."""
        with safe_open(file, framework="pt") as tensors:
            return cls(file, frozenset(tensors.keys()))

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._file, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
            return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
