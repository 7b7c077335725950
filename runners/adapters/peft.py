"""Reads a LoRA adapter in PEFT's format: its language part, for runners, and its vision part.

    adapter_config.json         rank, alpha and their patterns; everything else that would change
                                the answer is refused
    adapter_model.safetensors   base_model.model.LAYER.lora_A.weight (R, in) and .lora_B.weight
                                (out, R), of a convolution (R, in, H, W) and (out, R, 1, 1)
                                base_model.model.WEIGHT of the modules in `modules_to_save`, which
                                replaces the base's

LAYER is a name in the model that was tuned: transformers 5's, an older version's or Microsoft's
(wire/artifacts/microsoft_names.py). The export merges the vision part into the base's checkpoint
(export/adapters.py). Both files are foreign data: nothing in them is run, and `AdapterLimits`
bounds what is read and computed. RE2 matches patterns of layers without backtracking.

Both families tie the head to the embeddings. A product of lora_A and lora_B for the head is added
to its output, and the embeddings stay as they are; PEFT's merge adds it to both: the merged model
gives other answers than the adapter. PEFT saves the base's head beside a product for it.

Sources: peft 0.21, tuners/lora/layer.py (`update_layer`, `get_delta_weight`), utils/other.py
(`get_pattern_key`).
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import re2
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    DOWN,
    UP,
    WEIGHTS_FILE,
    AdapterLimits,
    open_file,
    read_config,
)
from wire.artifacts.manifest import ArtifactError
from wire.artifacts.microsoft_names import transformers_name

MAX_PATTERNS = 1_000
# All patterns of one key: one for each layer of the largest models takes 30,000.
MAX_ALL_CHARS = 65_536
_MAX_MEMORY_BYTES = 1 << 18  # one compiled pattern

# Further keys of the configuration, which only training needs.
_OF_TRAINING = (
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config"
    " exclude_modules inference_mode layers_pattern layers_to_transform loftq_config lora_dropout"
    " lora_ga_config megatron_config megatron_core peft_version qalora_group_size revision"
    " target_modules task_type"
)
_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(ge=-1e6, le=1e6)]
_Patterns = list[tuple[Any, float]]  # compiled


def compile_patterns(key: str, values: Mapping[str, float] | None) -> _Patterns:
    """Compile the patterns of a key, in their order; raise `ValueError`."""
    patterns: _Patterns = []
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    values = values or {}
    num_chars = sum(map(len, values))
    if len(values) > MAX_PATTERNS or num_chars > MAX_ALL_CHARS:
        raise ValueError(
            f"{key} has {len(values)} patterns of {num_chars} characters; allowed are"
            f" {MAX_PATTERNS} patterns of {MAX_ALL_CHARS} characters in all"
        )
    for pattern, value in values.items():
        try:
            patterns.append((re2.compile(rf"(.*\.)?({pattern})$", options), value))
        except re2.error as error:
            raise ValueError(f"{key}: {pattern!r} is not a pattern of RE2") from error
    return patterns


def value_of(patterns: _Patterns, layer: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(layer)), default)


class PeftConfig(BaseModel):
    """The ranks and factors of an adapter's layers; other keys must be empty."""

    model_config = ConfigDict(strict=True, extra="allow")

    peft_type: Literal["LORA"]
    bias: Literal["none"] = "none"  # a base's biases cannot be changed
    # other initialisations change the base's weights
    init_lora_weights: Literal[True, False, "gaussian", "eva", "orthogonal"] = True
    r: _Rank
    lora_alpha: _Alpha
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    use_rslora: bool | None = None
    # ends of the names of modules whose weights are replaced
    modules_to_save: Annotated[list[str], Field(max_length=100)] | None = None
    _ranks: _Patterns = PrivateAttr()
    _alphas: _Patterns = PrivateAttr()

    @classmethod
    def read(cls, folder: Path, max_rank: int) -> Self:
        """Read PEFT's file; raise `ArtifactError`."""
        try:
            return cls.model_validate(read_config(folder), context=max_rank)
        except ValidationError as error:
            first = error.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            if first["loc"]:
                key = ".".join(map(str, first["loc"]))
                value = reprlib.repr(first["input"])
                problem = f"{key} is {value}, which is not supported: {problem}"
            raise ArtifactError(f"{folder / CONFIG_FILE}: {problem}") from error

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        for key, value in sorted((self.model_extra or {}).items()):
            if value and key not in _OF_TRAINING.split():
                allowed = "null, false or empty: only the product of lora_A and lora_B is added"
                problem = f"{key} is {reprlib.repr(value)}, which is not supported"
                raise ValueError(f"{problem}; it must be {allowed}")
        ranks = [self.r, *(self.rank_pattern or {}).values()]
        max_rank: int = info.context or 0
        if max(ranks) > max_rank:
            raise ValueError(f"a rank is {max(ranks)}; at most {max_rank} is supported")
        self._ranks = compile_patterns("rank_pattern", self.rank_pattern)
        self._alphas = compile_patterns("alpha_pattern", self.alpha_pattern)
        return self

    def rank_of(self, layer: str) -> int:
        return int(value_of(self._ranks, layer, self.r))

    def factor_of(self, layer: str, rank: int) -> float:
        divisor = math.sqrt(rank) if self.use_rslora else rank
        return value_of(self._alphas, layer, self.lora_alpha) / divisor


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
        """Return a layer's name in a decoder; raise `ArtifactError` outside the language model."""
        name = transformers_name(f"{layer}.weight").removesuffix(".weight")
        is_layer = name.startswith(_LANGUAGE_MODEL) and name.rpartition(".")[2] not in _NOT_ADAPTED
        if name != HEAD and not is_layer:
            raise _not_supported(layer)
        return name

    def shape_of(self, weight: str) -> tuple[int, ...] | None:
        if weight not in self.shapes and _TIED.fullmatch(weight):
            return self.shapes.get(self.tied)
        return self.shapes.get(weight)

    def padded(self, up: Tensor) -> Tensor:
        """Add the rows that the base has beyond the tuned model's (V, R): means, never chosen."""
        shape = self.shape_of(f"{HEAD}.weight")
        num_missing = shape[0] - len(up) if shape and up.ndim == 2 else 0
        if not 0 < num_missing < _ROWS_MULTIPLE:
            return up
        return torch.cat([up, up.mean(0, keepdim=True).expand(num_missing, -1)])

    def has_copy(self, name: str, tensor: Tensor) -> bool:
        """Return True for the base's own head or embeddings, which PEFT saves beside a head's."""
        weight = _PART_OF_WEIGHT.sub("", name).removesuffix(".weight")
        weight = transformers_name(f"{weight}.weight")
        if not _TIED.fullmatch(weight) or "lora_" in name or tensor.ndim != 2:
            return False
        stored = self.tied if weight not in self.shapes else weight
        if stored not in self.shapes:
            return False
        with safe_open(self.file, framework="pt") as tensors:
            base_rows: Tensor = tensors.get_tensor(stored)[: len(tensor)]
        return torch.equal(base_rows.to(tensor.dtype).float(), tensor.float())


def _not_supported(name: str) -> ArtifactError:
    return ArtifactError(
        f"the adapter changes {name}, which is not supported; allowed are layers of the language"
        " model, its head, and layers and modules_to_save of the vision tower and the projector"
    )


_VISION = re.compile(r"(?:model\.)?(vision_tower|multi_modal_projector)\.(?:vision_model\.)?(.+)")
_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_SAVED = re.compile(r"base_model\.model\.(?P<weight>(?!.*\.lora_(?!embedding_)).+)")

_MAX_TENSORS = 2_048  # PaliGemma 10B has 912 of all its linear layers
_HEADER_LENGTH_BYTES = 8  # a safetensors file begins with it, little-endian
_MAX_HEADER_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two small matrices that is added to the weight of a layer."""

    layer: str  # its name in the file
    rank: int  # R, as the configuration has it
    down: Tensor  # float32 (R, in), of a convolution (R, in, H, W)
    up: Tensor  # float32 (out, R), of a convolution (out, R, 1, 1), with the factor

    def check(self, weight: tuple[int, ...] | None) -> None:
        """Raise `ArtifactError` unless it fits a weight of that shape; no layer has None."""
        if weight is None:
            raise ArtifactError(f"the adapter changes {self.layer}, which its base does not have")
        shapes = tuple(self.down.shape), tuple(self.up.shape)
        expected = (self.rank, *weight[1:]), (weight[0], self.rank, *(1 for _ in weight[2:]))
        if shapes != expected:
            raise ArtifactError(
                f"lora_A and lora_B of {self.layer} have the shapes {shapes[0]} and {shapes[1]};"
                f" with rank {self.rank} and the base's weight of {weight} they must be"
                f" {expected[0]} and {expected[1]}"
            )

    def added_to(self, weight: Tensor) -> Tensor:
        return weight.float() + (self.up.flatten(1) @ self.down.flatten(1)).view(weight.shape)


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """All weights that an adapter changes; those of the vision part by transformers 5's names."""

    # the tensors of a runner's adapter file: two float32 matrices for each layer
    language: Mapping[str, Tensor]
    products: Mapping[str, Product]  # vision tower and projector
    replaced: Mapping[str, Tensor]  # likewise, float32

    @property
    def vision_weights(self) -> tuple[str, ...]:
        return (*self.products, *self.replaced)


def read_adapter(folder: Path, base_decoder: Path, limits: AdapterLimits) -> dict[str, Tensor]:
    """Return the tensors of a runner's adapter file; raise `ArtifactError` for a vision part."""
    parts = read_parts(folder, base_decoder, limits)
    if parts.vision_weights:
        raise ArtifactError(
            f"it changes {parts.vision_weights[0]} and thus needs its own vision encoder,"
            " which only the export makes: add it to the catalog with adapter_of, run python -m"
            " export with its id, and restart"
        )
    return dict(parts.language)


def read_parts(folder: Path, base_decoder: Path, limits: AdapterLimits) -> AdapterParts:
    """Return the weights that PEFT's folder changes; raise `ArtifactError` for unsupported ones."""
    config = PeftConfig.read(folder, limits.max_rank)
    path = folder / WEIGHTS_FILE
    pairs, saved = _read_tensors(path, limits.max_bytes)
    base = BaseWeights.open(base_decoder)
    language = dict[str, Tensor]()
    products = dict[str, Product]()
    for layer, sides in pairs.items():
        if sides.keys() != {"A", "B"}:
            raise ArtifactError(f"{path} has only lora_{next(iter(sides))} of {layer}")
        rank = config.rank_of(layer)
        up = sides["B"].float() * config.factor_of(layer, rank)
        product = Product(layer, rank, sides["A"].float().contiguous(), up.contiguous())
        if (vision_name := _vision_name(f"{layer}.weight")) is not None:
            products[vision_name] = product
            continue
        name_in_base = base.layer_of(layer)
        if name_in_base == HEAD:
            product = replace(product, up=base.padded(product.up))
        product.check(base.shape_of(f"{name_in_base}.weight"))
        language |= {name_in_base + DOWN: product.down, name_in_base + UP: product.up}
    replaced = _replaced(saved, config.modules_to_save or (), base)
    if not (language or products or replaced):
        raise ArtifactError(f"{path} adapts no layer")
    if both := sorted(products.keys() & replaced.keys()):
        raise ArtifactError(
            f"{path} has both a product for {both[0]} and the weight itself; only one is supported"
        )
    return AdapterParts(language, products, replaced)


def _read_tensors(
    path: Path, max_bytes: int
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the matrices of each layer by their sides "A" and "B", and whole weights, by name."""
    pairs = dict[str, dict[str, Tensor]]()
    saved = dict[str, Tensor]()
    for name, tensor in _load(path, max_bytes).items():
        if (match := _TENSOR.fullmatch(name)) is not None:
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor
        elif (match := _SAVED.fullmatch(name)) is not None:
            saved[match["weight"]] = tensor
        else:
            raise ArtifactError(
                f"{path} has {name}, which is not supported; allowed are .lora_A.weight and"
                " .lora_B.weight of layers, and weights of modules_to_save"
            )
    return pairs, saved


def _load(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; a mapped file that is cut would end the process."""
    with open_file(path, max_bytes) as file:
        length = file.read(_HEADER_LENGTH_BYTES)
        if int.from_bytes(length, "little") > _MAX_HEADER_BYTES:
            raise ArtifactError(f"{path} has a header of more than {_MAX_HEADER_BYTES} bytes")
        data = length + file.read(max_bytes)
    try:
        tensors: dict[str, Tensor] = dict(sorted(load(data).items()))
    except Exception as error:  # safetensors and torch raise many for headers that are not in order
        raise ArtifactError(f"{path} cannot be read as safetensors: {error!r}") from error
    if len(tensors) > _MAX_TENSORS:
        raise ArtifactError(f"{path} has {len(tensors)} tensors; {_MAX_TENSORS} are allowed")
    num_bytes = 0
    for name, tensor in tensors.items():
        num_bytes += tensor.numel() * _FLOAT32_BYTES
        if not tensor.is_floating_point():
            raise ArtifactError(f"{path} has {name} as {tensor.dtype}; it must be floating-point")
    if num_bytes > max_bytes:
        raise ArtifactError(
            f"{path} has weights of {num_bytes} bytes in float32; at most {max_bytes} are allowed"
        )
    return tensors


def _replaced(
    saved: Mapping[str, Tensor], modules: Sequence[str], base: BaseWeights
) -> dict[str, Tensor]:
    """Return whole weights of the vision part; copies of the base's head are skipped."""
    replaced: dict[str, Tensor] = {}
    for name, tensor in saved.items():
        vision_name = None if ".lora_" in name else _vision_name(name)
        if vision_name is not None and any(f".{module}." in f".{name}" for module in modules):
            replaced[vision_name] = tensor.float()
        elif not base.has_copy(name, tensor):
            raise _not_supported(name)
    return replaced


def _vision_name(name: str) -> str | None:
    match = _VISION.fullmatch(transformers_name(name))
    return None if match is None else f"model.{match[1]}.{match[2]}"
