"""A LoRA adapter's configuration in PEFT's adapter_config.json: rank, alpha and their patterns.

Everything else that would change the answer is refused. The file is foreign data: nothing in it is
run (runners/adapters/layer_patterns.py). Source of ranks and factors: peft 0.21,
tuners/lora/layer.py (`update_layer`).
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.adapters.layer_patterns import LayerPatterns
from wire.artifacts.adapter_folder import CONFIG_FILE, AdapterError, read_config

# Keys of the configuration that are read, or that only training needs.
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "modules_to_save",
}
_OF_TRAINING = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
# The other initialisations change the weights of the base as well.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")

_MAX_ALPHA = 1e6
_MAX_SAVED_MODULES = 100


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The ranks and factors of an adapter's layers."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    ranks: LayerPatterns
    alphas: LayerPatterns
    saved_modules: tuple[str, ...]  # ends of the names of modules whose weights are replaced

    @classmethod
    def read(cls, folder: Path, max_rank: int) -> "PeftConfig":
        """Read the configuration in `folder`.

        Raise `AdapterError` if it is malformed or has something unsupported.
        """
        values = read_config(folder)
        try:
            _check_supported(values)
            return cls(
                rank=_rank("r", values.get("r"), max_rank),
                alpha=_alpha("lora_alpha", values.get("lora_alpha")),
                is_rank_stabilized=bool(values.get("use_rslora")),
                ranks=_rank_patterns(values, max_rank),
                alphas=_alpha_patterns(values),
                saved_modules=tuple(values.get("modules_to_save") or ()),
            )
        except AdapterError as error:
            raise AdapterError(f"{folder / CONFIG_FILE}: {error}") from error

    def rank_of(self, layer: str) -> int:
        return int(self.ranks.value_of(layer, self.rank))

    def factor_of(self, layer: str, rank: int) -> float:
        """Return the factor of the product of a layer of this rank."""
        divisor = math.sqrt(rank) if self.is_rank_stabilized else rank
        return self.alphas.value_of(layer, self.alpha) / divisor


def _require(key: str, value: object, is_supported: bool, allowed: str) -> None:
    if not is_supported:
        raise AdapterError(
            f"{key} is {reprlib.repr(value)}, which is not supported; it must be {allowed}"
        )


def _check_supported(values: Mapping[str, Any]) -> None:
    def require(key: str, is_supported: bool, allowed: str) -> None:
        _require(key, values.get(key), is_supported, allowed)

    require("peft_type", values.get("peft_type") == "LORA", "LORA")
    require("bias", values.get("bias", "none") == "none", "none: a base's biases cannot be changed")
    start = values.get("init_lora_weights", True)
    allowed = ", ".join(map(str, _INITIALISATIONS))
    require(
        "init_lora_weights",
        start in _INITIALISATIONS,
        f"one of {allowed}: others change the base's weights",
    )
    require("use_rslora", values.get("use_rslora") in (True, False, None), "true or false")
    saved = values.get("modules_to_save") or []
    are_names = isinstance(saved, list) and all(isinstance(name, str) for name in saved)
    require(
        "modules_to_save",
        are_names and len(saved) <= _MAX_SAVED_MODULES,
        f"{_MAX_SAVED_MODULES} names at most",
    )
    for key in sorted(values.keys() - _READ - _OF_TRAINING):
        require(
            key,
            not values[key],
            "null, false or empty: only the product of lora_A and lora_B is added",
        )


def _rank(key: str, value: Any, max_rank: int) -> int:
    _require(
        key,
        value,
        type(value) is int and 1 <= value <= max_rank,
        f"a whole number of 1 to {max_rank}",
    )
    return int(value)


def _alpha(key: str, value: Any) -> float:
    is_number = type(value) in (int, float) and abs(value) <= _MAX_ALPHA
    _require(key, value, is_number, f"a number of at most {_MAX_ALPHA:g}")
    return float(value)


def _rank_patterns(values: Mapping[str, Any], max_rank: int) -> LayerPatterns:
    key = "rank_pattern"
    given = _mapping(values, key)
    ranks = {pattern: _rank(key, rank, max_rank) for pattern, rank in given.items()}
    return LayerPatterns.compile(key, ranks)


def _alpha_patterns(values: Mapping[str, Any]) -> LayerPatterns:
    key = "alpha_pattern"
    given = _mapping(values, key)
    alphas = {pattern: _alpha(key, alpha) for pattern, alpha in given.items()}
    return LayerPatterns.compile(key, alphas)


def _mapping(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key) or {}
    _require(key, value, isinstance(value, dict), "a mapping by patterns of layers")
    return dict(value)
