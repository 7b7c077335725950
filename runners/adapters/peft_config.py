"""A LoRA adapter's configuration in PEFT's adapter_config.json: rank, alpha and their patterns.

Everything else that would change the answer is refused. The file is foreign data: nothing in it is
run (runners/adapters/layer_patterns.py). Source of ranks and factors: peft 0.21,
tuners/lora/layer.py (`update_layer`).
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.adapters.layer_patterns import LayerPatterns
from wire.artifacts.adapter_folder import CONFIG_FILE, AdapterError, read_config

# Keys of the configuration that are read, or that only training needs.
_READ = (
    "alpha_pattern bias init_lora_weights lora_alpha modules_to_save peft_type r rank_pattern"
    " use_rslora"
)
_OF_TRAINING = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config"
    " exclude_modules inference_mode layers_pattern layers_to_transform loftq_config lora_dropout"
    " lora_ga_config megatron_config megatron_core peft_version qalora_group_size revision"
    " target_modules task_type"
)
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
        """Read `folder`; raise `AdapterError` if it is malformed or not supported."""
        values = read_config(folder)

        def rank(key: str, value: Any) -> int:
            is_rank = type(value) is int and 1 <= value <= max_rank
            _require(key, value, is_rank, f"a whole number of 1 to {max_rank}")
            return int(value)

        def alpha(key: str, value: Any) -> float:
            is_number = type(value) in (int, float) and abs(value) <= _MAX_ALPHA
            _require(key, value, is_number, f"a number of at most {_MAX_ALPHA:g}")
            return float(value)

        try:
            _check_supported(values)
            return cls(
                rank=rank("r", values.get("r")),
                alpha=alpha("lora_alpha", values.get("lora_alpha")),
                is_rank_stabilized=bool(values.get("use_rslora")),
                ranks=_patterns("rank_pattern", values, rank),
                alphas=_patterns("alpha_pattern", values, alpha),
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

    start = values.get("init_lora_weights", True)
    starts = ", ".join(map(str, _INITIALISATIONS))
    saved = values.get("modules_to_save") or []
    are_names = isinstance(saved, list) and all(isinstance(name, str) for name in saved)
    are_few_names = are_names and len(saved) <= _MAX_SAVED_MODULES
    is_start = start in _INITIALISATIONS
    require("peft_type", values.get("peft_type") == "LORA", "LORA")
    require("bias", values.get("bias", "none") == "none", "none: a base's biases cannot be changed")
    require("init_lora_weights", is_start, f"one of {starts}: others change the base's weights")
    require("use_rslora", values.get("use_rslora") in (True, False, None), "true or false")
    require("modules_to_save", are_few_names, f"{_MAX_SAVED_MODULES} names at most")
    for key in sorted(values.keys() - {*_READ.split(), *_OF_TRAINING.split()}):
        allowed = "null, false or empty: only the product of lora_A and lora_B is added"
        require(key, not values[key], allowed)


def _patterns(
    key: str, values: Mapping[str, Any], read: Callable[[str, Any], float]
) -> LayerPatterns:
    given = values.get(key) or {}
    _require(key, given, isinstance(given, dict), "a mapping by patterns of layers")
    return LayerPatterns.compile(key, {pattern: read(key, each) for pattern, each in given.items()})
