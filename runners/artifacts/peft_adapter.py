"""Reads a LoRA adapter in PEFT's format, and converts it to the form that a runner loads.

    adapter_config.json         rank, alpha and their patterns; everything else that would change the answer is refused
    adapter_model.safetensors   base_model.model.LAYER.lora_A.weight (R, in) and .lora_B.weight (out, R)

LAYER is a name in the model that was tuned: transformers 5 calls Florence-2's and PaliGemma's language model
`model.language_model`, older versions `language_model.model`. Needs neither peft nor the base's checkpoint.
Source of ranks and factors: peft 0.21, tuners/lora/layer.py (`update_layer`) and utils/other.py (`get_pattern_key`).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from runners.artifacts.adapter_folder import CONFIG_FILE, DOWN, UP, WEIGHTS_FILE, AdapterError

_LANGUAGE_MODEL = "model.language_model."
_OLDER_LANGUAGE_MODEL = "language_model.model."
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_NOT_ADAPTED = (
    "embed_tokens",
    "embed_positions",
    "lm_head",
    "shared",
)  # of the language model, but no layers

# Keys of the configuration that are read, or that only training needs.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"}
_OF_TRAINING = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"),
    *("lora_ga_config", "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision"),
    *("target_modules", "task_type"),
}
# The other initialisations change the weights of the base as well.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The ranks and factors of an adapter's layers."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    ranks: Mapping[str, int]  # by pattern of a layer's name
    alphas: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path) -> "PeftConfig":
        """Read the configuration in `folder`; raise `AdapterError` if it is malformed or has something unsupported."""
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            _check_supported(path, values)
            return cls(
                int(values["r"]),
                float(values["lora_alpha"]),
                bool(values.get("use_rslora")),
                {pattern: int(rank) for pattern, rank in (values.get("rank_pattern") or {}).items()},
                {pattern: float(alpha) for pattern, alpha in (values.get("alpha_pattern") or {}).items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdapterError(f"{path} is not a configuration of a LoRA adapter: {error!r}") from error

    def rank_of(self, layer: str) -> int:
        return int(_matching(self.ranks, layer, self.rank))

    def factor_of(self, layer: str) -> float:
        """Return the factor of a layer's product."""
        rank = self.rank_of(layer)
        return _matching(self.alphas, layer, self.alpha) / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def read_adapter(folder: Path, base_decoder: Path) -> dict[str, Tensor]:
    """Return the tensors of a runner's adapter file: two float32 matrices for each layer that PEFT's folder adapts.

    Raise `AdapterError` for a layer that the base (a safetensors file) does not have, or has with another shape.
    """
    config, converted = PeftConfig.read(folder), dict[str, Tensor]()
    pairs, shapes = _read_pairs(folder / WEIGHTS_FILE), _shapes(base_decoder)
    for layer, sides in pairs.items():
        if sides.keys() != {"A", "B"}:
            raise AdapterError(f"{folder / WEIGHTS_FILE} has only lora_{next(iter(sides))} of {layer}")
        own_name = _own_name(layer)
        _check_shapes(layer, sides, config.rank_of(layer), shapes.get(f"{own_name}.weight"))
        converted[own_name + DOWN] = sides["A"].float().contiguous()
        converted[own_name + UP] = (sides["B"].float() * config.factor_of(layer)).contiguous()
    if not converted:
        raise AdapterError(f"{folder / WEIGHTS_FILE} adapts no layer")
    return converted


def _check_supported(path: Path, values: Mapping[str, Any]) -> None:
    def require(key: str, is_supported: bool, allowed: str) -> None:
        if not is_supported:
            raise AdapterError(f"{path}: {key} is {values.get(key)!r}, which is not supported; it must be {allowed}")

    require("peft_type", values.get("peft_type") == "LORA", "LORA")
    require("bias", values.get("bias", "none") == "none", "none: a base's biases cannot be changed")
    start = values.get("init_lora_weights", True)
    allowed = ", ".join(map(str, _INITIALISATIONS))
    require("init_lora_weights", start in _INITIALISATIONS, f"one of {allowed}: others change the base's weights")
    for key in sorted(values.keys() - _READ - _OF_TRAINING):
        require(key, not values[key], "null, false or empty: only the product of lora_A and lora_B is added")


def _matching(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a layer's name."""
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    return next(found, default)


def _read_pairs(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the matrices of each layer by their sides "A" and "B", under the names of the file."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read as safetensors: {error}") from error
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := _TENSOR.fullmatch(name)) is None:
            raise AdapterError(
                f"{path} has {name}, which is not supported; allowed are base_model.model.LAYER.lora_A.weight and "
                ".lora_B.weight of linear layers"
            )
        pairs.setdefault(match["layer"], {})[match["side"]] = tensor
    return pairs


def _own_name(layer: str) -> str:
    """Return the name of a layer in a base's artifacts; raise `AdapterError` if it is not of the language model."""
    own = layer
    if layer.startswith(_OLDER_LANGUAGE_MODEL):
        own = _LANGUAGE_MODEL + layer.removeprefix(_OLDER_LANGUAGE_MODEL)
    if not own.startswith(_LANGUAGE_MODEL) or own.rpartition(".")[2] in _NOT_ADAPTED:
        raise AdapterError(
            f"the adapter changes {layer}, which is not supported; allowed are attention and feed-forward layers of "
            f"{_LANGUAGE_MODEL}* or {_OLDER_LANGUAGE_MODEL}*: no vision tower, projector, embedding or output head. "
            "Merge it into its base and serve the result (docs/models.md, 'Serve a fine-tuned checkpoint')"
        )
    return own


def _shapes(base_decoder: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(base_decoder, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _check_shapes(layer: str, sides: Mapping[str, Tensor], rank: int, base: tuple[int, ...] | None) -> None:
    if base is None:
        raise AdapterError(f"the adapter changes {layer}, which its base does not have")
    found, expected = (tuple(sides["A"].shape), tuple(sides["B"].shape)), ((rank, base[-1]), (base[0], rank))
    if found != expected:
        raise AdapterError(
            f"lora_A and lora_B of {layer} have the shapes {found[0]} and {found[1]}; with rank {rank} and the base's "
            f"weight of {base} they must be {expected[0]} and {expected[1]}"
        )
