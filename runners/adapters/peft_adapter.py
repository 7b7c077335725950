"""Reads a LoRA adapter in PEFT's format: its language part, for runners, and its vision part.

    adapter_config.json         runners/adapters/peft_config.py
    adapter_model.safetensors   base_model.model.LAYER.lora_A.weight (R, in) and .lora_B.weight
                                (out, R), of a convolution (R, in, H, W) and (out, R, 1, 1)
                                base_model.model.WEIGHT of the modules in `modules_to_save`, which
                                replaces the base's

LAYER is a name in the model that was tuned: transformers 5's, an older version's or Microsoft's
(wire/artifacts/microsoft_names.py). PEFT saves the base's head beside a product for it. Needs
neither peft nor the base's checkpoint: the export merges the vision part into it
(export/adapters.py). Both files are foreign data: nothing in them is run, and `AdapterLimits`
bounds what is read and computed. Source of the product: peft 0.21, tuners/lora/layer.py
(`get_delta_weight`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from safetensors.torch import load
from torch import Tensor

from runners.adapters.base_weights import HEAD, BaseWeights
from runners.adapters.peft_config import PeftConfig
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    DOWN,
    HEADER_LENGTH_BYTES,
    MAX_HEADER_BYTES,
    UP,
    WEIGHTS_FILE,
    AdapterError,
    AdapterLimits,
    open_file,
)
from wire.artifacts.microsoft_names import transformers_name

_VISION = re.compile(r"(?:model\.)?(vision_tower|multi_modal_projector)\.(?:vision_model\.)?(.+)")
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_SAVED = re.compile(r"base_model\.model\.(?P<weight>(?!.*\.lora_(?!embedding_)).+)")

_MAX_TENSORS = 2_048  # PaliGemma 10B has 912 of all its linear layers
_MAX_NAME_CHARS = 300
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two small matrices that is added to the weight of a layer."""

    layer: str  # its name in the file
    rank: int  # R, as the configuration has it
    down: Tensor  # float32 (R, in), of a convolution (R, in, H, W)
    up: Tensor  # float32 (out, R), of a convolution (out, R, 1, 1), with the factor

    @classmethod
    def of(cls, layer: str, sides: Mapping[str, Tensor], config: PeftConfig) -> Self:
        """Return the product of a file's matrices, by their sides "A" and "B"."""
        rank = config.rank_of(layer)
        up = sides["B"].float() * config.factor_of(layer, rank)
        return cls(layer, rank, sides["A"].float().contiguous(), up.contiguous())

    def check(self, weight: tuple[int, ...] | None) -> None:
        """Raise `AdapterError` unless it fits a weight of that shape; no layer has None."""
        if weight is None:
            raise AdapterError(f"the adapter changes {self.layer}, which its base does not have")
        found = tuple(self.down.shape), tuple(self.up.shape)
        is_convolution = len(weight) > 2
        if is_convolution and found[0][1:2] != weight[1:2]:
            raise AdapterError(
                f"the adapter changes {self.layer}, a convolution in groups, which is not"
                " supported: PEFT does not merge it either; train without this layer"
            )
        expected = (self.rank, *weight[1:]), (weight[0], self.rank, *(1 for _ in weight[2:]))
        if found != expected:
            raise AdapterError(
                f"lora_A and lora_B of {self.layer} have the shapes {found[0]} and {found[1]}; with"
                f" rank {self.rank} and the base's weight of {weight} they must be {expected[0]}"
                f" and {expected[1]}"
            )

    def added_to(self, weight: Tensor) -> Tensor:
        """Return `weight` in float32 plus the product."""
        return weight.float() + (self.up.flatten(1) @ self.down.flatten(1)).view(weight.shape)


@dataclass(frozen=True, slots=True)
class VisionPart:
    """Changed weights of vision tower and projector, by their names in transformers 5."""

    products: Mapping[str, Product]
    replaced: Mapping[str, Tensor]  # float32

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of all changed weights."""
        return (*self.products, *self.replaced)


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """All weights that an adapter changes."""

    # the tensors of a runner's adapter file: two float32 matrices for each layer
    language: Mapping[str, Tensor]
    vision: VisionPart


def read_adapter(folder: Path, base_decoder: Path, limits: AdapterLimits) -> dict[str, Tensor]:
    """Return the tensors of a runner's adapter file.

    Raise `AdapterError` for an adapter with a vision part, and where `read_parts` does.
    """
    parts = read_parts(folder, base_decoder, limits)
    if parts.vision.weights:
        raise AdapterError(
            f"it changes {parts.vision.weights[0]} and thus needs its own vision encoder,"
            " which only the export makes: add it to the catalog with adapter_of, run python -m"
            " export with its id, and restart"
        )
    return dict(parts.language)


def read_parts(folder: Path, base_decoder: Path, limits: AdapterLimits) -> AdapterParts:
    """Return the weights that PEFT's folder changes; `base_decoder` is a safetensors file.

    Raise `AdapterError` for a layer that the base does not have, or has with another shape, and for
    a form that cannot be served.
    """
    config = PeftConfig.read(folder, limits.max_rank)
    path = folder / WEIGHTS_FILE
    pairs, saved = _read_tensors(path, limits.max_bytes)
    base = BaseWeights.open(base_decoder)
    language = dict[str, Tensor]()
    products = dict[str, Product]()
    for layer, sides in pairs.items():
        if sides.keys() != {"A", "B"}:
            raise AdapterError(f"{path} has only lora_{next(iter(sides))} of {layer}")
        product = Product.of(layer, sides, config)
        if (vision_name := _vision_name(f"{layer}.weight")) is not None:
            products[vision_name] = product
            continue
        own_name = base.layer_of(layer)
        if own_name == HEAD:
            product = replace(product, up=base.padded(product.up))
        product.check(base.shape_of(own_name))
        language |= {own_name + DOWN: product.down, own_name + UP: product.up}
    vision = VisionPart(products, _replaced(path, saved, config.saved_modules, base))
    if not language and not vision.weights:
        raise AdapterError(f"{path} adapts no layer")
    if both := sorted(vision.products.keys() & vision.replaced.keys()):
        raise AdapterError(
            f"{path} has both a product for {both[0]} and the weight itself; only one is supported"
        )
    return AdapterParts(language, vision)


def _read_tensors(
    path: Path, max_bytes: int
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the matrices of each layer by their sides "A" and "B", and whole weights, under the
    names of the file.
    """
    pairs = dict[str, dict[str, Tensor]]()
    saved = dict[str, Tensor]()
    for name, tensor in _load(path, max_bytes).items():
        if (match := _TENSOR.fullmatch(name)) is not None:
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor
        elif (match := _SAVED.fullmatch(name)) is not None:
            saved[match["weight"]] = tensor
        else:
            raise AdapterError(
                f"{path} has {name}, which is not supported; allowed are"
                " base_model.model.LAYER.lora_A.weight and .lora_B.weight of linear layers and"
                " convolutions, and weights of modules_to_save"
            )
    return pairs, saved


def _load(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; a mapped file that is cut would end the process."""
    with open_file(path, max_bytes) as file:
        length = file.read(HEADER_LENGTH_BYTES)
        if (num_header_bytes := int.from_bytes(length, "little")) > MAX_HEADER_BYTES:
            raise AdapterError(
                f"{path} has a header of {num_header_bytes} bytes; {MAX_HEADER_BYTES} are allowed"
            )
        data = length + file.read(max_bytes)
    try:
        tensors: dict[str, Tensor] = dict(sorted(load(data).items()))
    except Exception as error:  # safetensors and torch raise many for headers that are not in order
        raise AdapterError(f"{path} cannot be read as safetensors: {error!r}") from error
    if len(tensors) > _MAX_TENSORS or any(len(name) > _MAX_NAME_CHARS for name in tensors):
        allowed = f"{_MAX_TENSORS} tensors with names of at most {_MAX_NAME_CHARS} characters"
        raise AdapterError(f"{path} has {len(tensors)} tensors; allowed are {allowed}")
    if others := [name for name, tensor in tensors.items() if not tensor.is_floating_point()]:
        raise AdapterError(
            f"{path} has {others[0]} as {tensors[others[0]].dtype}; it must be floating-point"
        )
    num_bytes = sum(tensor.numel() * _FLOAT32_BYTES for tensor in tensors.values())
    if num_bytes > max_bytes:
        raise AdapterError(
            f"{path} has weights of {num_bytes} bytes in float32; at most {max_bytes} are allowed"
        )
    return tensors


def _replaced(
    path: Path, saved: Mapping[str, Tensor], modules: Sequence[str], base: BaseWeights
) -> dict[str, Tensor]:
    """Return the weights of `modules` by their names in transformers 5.

    All must be of vision tower or projector; copies of the base's head change nothing.
    """
    replaced: dict[str, Tensor] = {}
    refused: list[str] = []
    for name, tensor in saved.items():
        vision_name = None if ".lora_" in name else _vision_name(name)
        if vision_name is not None and any(f".{module}." in f".{name}" for module in modules):
            replaced[vision_name] = tensor.float()
        elif not base.has_copy(name, tensor):
            refused.append(name)
    if refused:
        raise base.not_supported(refused)
    for module in modules:
        if not any(f".{module}." in f".{name}" for name in saved):
            raise AdapterError(
                f"{path.parent / CONFIG_FILE}: modules_to_save is {list(modules)!r}, which is not"
                f" supported: {module} has no weights in the adapter; allowed are modules of the"
                " vision tower and the projector"
            )
    return replaced


def _vision_name(name: str) -> str | None:
    """Return the name in transformers 5 of a weight of the vision part, or None."""
    match = _VISION.fullmatch(transformers_name(name))
    return None if match is None else f"model.{match[1]}.{match[2]}"
