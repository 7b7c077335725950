"""The base of an adapter: the weights of its decoder, and the output head.

Both families tie the head to the embeddings: it has no separate weight. A product of lora_A and
lora_B is added to its output, and the embeddings stay as they are. PEFT's merge adds it to both:
the merged model gives other answers than the adapter.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from wire.artifacts.adapter_folder import AdapterError
from wire.artifacts.microsoft_names import transformers_name

HEAD = "lm_head"
_LANGUAGE_MODEL = "model.language_model."
_EMBEDDINGS = ("shared", "embed_tokens")
_TIED = re.compile(
    rf"(?:{HEAD}|model\.language_model\.(?:(?:en|de)coder\.)?(?:shared|embed_tokens))\.weight"
)
_NOT_ADAPTED = (*_EMBEDDINGS, "embed_positions")  # parts of the language model, but not layers
_PART_OF_WEIGHT = re.compile(r"\.(?:base_layer\.weight|lora_embedding_[AB])$")  # PEFT's
_ROWS_MULTIPLE = 64  # the export rounds the rows of embeddings up
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """The weights of a base's decoder, which are read only to be compared."""

    file: Path
    shapes: Mapping[str, tuple[int, ...]]
    tied: str  # the name of the weight that is both the head and the embeddings

    @classmethod
    def open(cls, file: Path) -> "BaseWeights":
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        candidates = [f"{_LANGUAGE_MODEL}{name}.weight" for name in _EMBEDDINGS]
        tied = next((name for name in candidates if name in shapes), candidates[0])
        return cls(file, shapes, tied)

    def layer_of(self, layer: str) -> str:
        """Return a layer's name in a decoder; raise `AdapterError` outside the language model."""
        own = transformers_name(f"{layer}.weight").removesuffix(".weight")
        is_layer = own.startswith(_LANGUAGE_MODEL) and own.rpartition(".")[2] not in _NOT_ADAPTED
        if own != HEAD and not is_layer:
            raise self.not_supported([layer])
        return own

    def shape_of(self, layer: str) -> tuple[int, ...] | None:
        return self._shape(f"{layer}.weight")

    def padded(self, up: Tensor) -> Tensor:
        """Add the rows of a head's matrix (V, R) that the base has beyond the tuned model's.

        The rows of the base are means, so that their tokens are never chosen; these are too.
        """
        shape = self.shape_of(HEAD)
        num_missing = shape[0] - len(up) if shape and up.ndim == 2 else 0
        if not 0 < num_missing < _ROWS_MULTIPLE:
            return up
        return torch.cat([up, up.mean(0, keepdim=True).expand(num_missing, -1)])

    def has_copy(self, name: str, tensor: Tensor) -> bool:
        """Return True for the base's own head or embeddings, which PEFT saves beside a head's."""
        weight = _weight_of(name)
        if not _TIED.fullmatch(weight) or "lora_" in name or tensor.ndim != 2:
            return False
        stored = self.tied if weight not in self.shapes else weight
        if stored not in self.shapes:
            return False
        with safe_open(self.file, framework="pt") as tensors:
            own: Tensor = tensors.get_tensor(stored)[: len(tensor)]
        return torch.equal(own.to(tensor.dtype).float(), tensor.float())

    def not_supported(self, names: Sequence[str]) -> AdapterError:
        """Return the error for weights of an adapter, with the memory that copies would take."""
        weights = sorted(set(map(_weight_of, names)))
        shapes = [self._shape(weight) for weight in weights]
        num_weights = sum(math.prod(shape) for shape in shapes if shape is not None)
        problem = f"the adapter changes {names[0]}, which is not supported"
        if num_weights:
            size_mb = num_weights * _FLOAT32_BYTES / 1e6
            share = num_weights / sum(map(math.prod, self.shapes.values()))
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            problem += (
                f": copies of it{others} for one adapter would take {size_mb:.1f} MB in float32,"
                f" {share:.1%} of the decoder of its base"
            )
        return AdapterError(
            f"{problem}; allowed are lora_A and lora_B of the output head and of attention and"
            " feed-forward layers of the language model, and layers and modules_to_save of the"
            " vision tower and the projector"
        )

    def _shape(self, weight: str) -> tuple[int, ...] | None:
        if weight not in self.shapes and _TIED.fullmatch(weight):
            return self.shapes.get(self.tied)
        return self.shapes.get(weight)


def _weight_of(name: str) -> str:
    """Return the name in transformers 5 of the weight that a tensor or layer of PEFT changes."""
    weight = _PART_OF_WEIGHT.sub("", name).removesuffix(".weight")
    return transformers_name(f"{weight}.weight")
