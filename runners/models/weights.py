"""Decoder weights, read one by one from the artifact, directly into their dtype and device.

The file is mapped for one tensor at a time: a mapping that stays open keeps all pages that were
read in memory. No module of transformers is constructed, so joined and quantized weights are in
memory once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import layer_norm

from runners.adapters.low_rank import Adapters
from runners.models.layers import DTYPES, Linear, linear_layer
from runners.tokens.text import Constraints, GenerationRules, PromptTokenizer
from wire.artifacts.manifest import Precision

LayerT = TypeVar("LayerT")

_LANGUAGE_MODEL = "model.language_model."  # prefix of the names in checkpoints of both families


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """The tensors of `source` whose names start with `prefix`; every read returns a copy."""

    source: Mapping[str, Tensor]
    precision: Precision
    device: torch.device
    prefix: str = ""
    adapters: Adapters | None = None  # adapters for its layers

    @classmethod
    def open(
        cls, file: Path, precision: Precision, device: str, adapters: Adapters | None = None
    ) -> Self:
        """Return the weights of the language model in a safetensors file, without reading any."""
        tensors = _FileTensors(file)
        return cls(tensors, precision, torch.device(device), _LANGUAGE_MODEL, adapters)

    def at(self, name: str) -> Self:
        return replace(self, prefix=f"{self.prefix}{name}.")

    def layers(self, num_layers: int, build: Callable[[int, Self], LayerT]) -> Sequence[LayerT]:
        return [build(index, self.at(f"layers.{index}")) for index in range(num_layers)]

    def has(self, name: str) -> bool:
        return self.prefix + name in self.source

    def tensor(self, name: str) -> Tensor:
        return self._join([name])

    def linear(self, *names: str) -> Linear:
        """Read layers that share an input as one layer, with their outputs concatenated."""
        weight = self._join([f"{name}.weight" for name in names])
        biases = [f"{name}.bias" for name in names if self.has(f"{name}.bias")]
        base = self._linear_of(weight, self._join(biases) if biases else None)
        layers = [self.prefix + name for name in names]
        sizes = [len(self.source[f"{layer}.weight"]) for layer in layers]
        return self._adapted(base, layers, sizes, weight.shape[1])

    def output_head(self, embeddings: Tensor) -> Linear:
        """Return the layer of logits: `lm_head`, or the tied `embeddings` (V, C)."""
        whole = replace(self, prefix="")
        if whole.has("lm_head.weight"):
            return whole.linear("lm_head")
        head = linear_layer(embeddings, None, self.precision, is_shared=True)
        return self._adapted(head, ["lm_head"], [len(embeddings)], embeddings.shape[1])

    def layer_norm(self, name: str, epsilon: float) -> Callable[[Tensor], Tensor]:
        weight = self.tensor(f"{name}.weight")
        bias = self.tensor(f"{name}.bias")
        return partial(
            layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=epsilon
        )

    def _adapted(
        self, base: Linear, layers: Sequence[str], sizes: Sequence[int], width: int
    ) -> Linear:
        return base if self.adapters is None else self.adapters.over(base, layers, sizes, width)

    def _linear_of(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return linear_layer(weight, bias, self.precision)

    def _join(self, names: Sequence[str]) -> Tensor:
        keys = [self.prefix + name for name in names]
        sizes = [len(self.source[key]) for key in keys]
        shape = (sum(sizes), *self.source[keys[0]].shape[1:])
        joined = self._allocate(names, shape)
        for key, part in zip(keys, torch.split(joined, sizes), strict=True):
            part.copy_(self.source[key])
        return joined

    def _allocate(self, _names: Sequence[str], shape: Sequence[int]) -> Tensor:
        return torch.empty(tuple(shape), dtype=DTYPES[self.precision], device=self.device)


@dataclass(frozen=True, slots=True)
class DecoderCheckpoint:
    """The parts of a checkpoint that its decoder is made of."""

    config: Mapping[str, Any]  # transformers' config.json
    weights: DecoderWeights
    rules: GenerationRules
    tokenizer: PromptTokenizer
    constraints: Constraints

    @property
    def adapters(self) -> Adapters:
        """The adapters of its layers; none can be added if the weights have none."""
        return self.weights.adapters or Adapters()


class _FileTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, which stays mapped while a tensor is referenced."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with safe_open(file, framework="pt") as tensors:
            self._names = frozenset(tensors.keys())

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
