"""A checkpoint's tensors under transformers' names, and its model.

    CheckpointTensors   names and places of all tensors; each is mapped from its shard when it is
                        read
    empty_model         the model with allocated but untouched weights, which take no memory until
                        they are written
    load_checkpoint     the model as transformers loads it

Names are converted as `from_pretrained` converts them, by functions of transformers 5.24 that its
documentation does not list.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import rename_source_key
from transformers.initialization import no_init_weights
from transformers.utils import logging

from export.checkpoints.sources import weight_files
from export.errors import SourceError, one_line
from wire.artifacts.manifest import TOKENIZER_FILE

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_GenerationConfig: Any = GenerationConfig

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NO_FLOATS = {"BOOL", "U8", "I32", "I64"}  # of buffers
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
VISION_PREFIXES = ("model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor in a shard."""

    shard: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        with safe_open(self.shard, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(self.name)
            return tensor


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of the checkpoint's model; each is mapped for as long as it is referenced."""

    def __init__(self, places: Mapping[str, _Place], dtype: torch.dtype, model: Any) -> None:
        self._stored = places
        self._tied: Mapping[str, str] = model.all_tied_weights_keys  # name -> whose tensor it has
        self._names = dict.fromkeys(name for name in places if name not in self._tied)
        self._dtype = dtype
        text_config = model.config.get_text_config(decoder=True)
        self.num_parameters = sum(map(torch.numel, model.parameters()))  # tied ones once
        self.context_window: int = text_config.max_position_embeddings
        self.vocabulary_size: int = text_config.vocab_size

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Find all tensors; raise `SourceError` if one is missing or has another shape."""
        with torch.device("meta"):
            model = empty_model(folder)
        expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        try:
            places = _places(folder, model, expected)
            dtype = stored_dtype(folder)
        except (OSError, SafetensorError) as error:
            raise SourceError(f"the checkpoint's weights cannot be read: {error}") from error
        absent = expected.keys() - places.keys() - model.all_tied_weights_keys.keys()
        if absent:
            raise SourceError(
                f"the checkpoint lacks {len(absent)} weights of its configuration, first"
                f" {min(absent)}"
            )
        for name, place in sorted(places.items()):
            if place.shape != expected[name]:
                raise SourceError(
                    f"{name} has the shape {place.shape}; that of the configuration is"
                    f" {expected[name]}"
                )
        return cls(places, dtype, model)

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor in the checkpoint's dtype: float32 if it has several."""
        tensor = self._stored[name].read()
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def check_tied(self) -> None:
        """Raise `SourceError` for a weight that differs from one that it is tied to."""
        for name, source in self._tied.items():
            if name not in self._stored or source not in self._stored:
                continue
            if not torch.equal(self._stored[name].read(), self._stored[source].read()):
                raise SourceError(
                    f"{name} differs from {source}, to which the model ties it: an adapter was"
                    " merged into one of both; export the base and serve the adapter"
                )

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str) -> None:
        """Read the weights of a module, `prefix` in the model, except those on the meta device."""
        for weights in (module.named_parameters(prefix), module.named_buffers(prefix)):
            for name, weight in weights:
                if name in self._names and not weight.is_meta:
                    weight.data = self[name].to(weight.dtype, copy=True)


def check_vocabulary(folder: Path, tensors: CheckpointTensors) -> None:
    """Raise `SourceError` if the tokenizer has a token without an embedding."""
    try:
        last_id = max(Tokenizer.from_file(str(folder / TOKENIZER_FILE)).get_vocab().values())
    except Exception as error:  # tokenizers raises no other class
        raise SourceError(f"{TOKENIZER_FILE} cannot be read: {one_line(error)}") from error
    if last_id >= tensors.vocabulary_size:
        raise SourceError(
            f"{TOKENIZER_FILE} has {last_id + 1} tokens, the embeddings have"
            f" {tensors.vocabulary_size}: copy the tokenizer that was saved with the weights"
        )


def silence_transformers() -> None:
    """Show neither warnings nor bars of transformers, which would break into the progress."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def empty_model(folder: Path) -> Any:
    """Return the checkpoint's model in float32, with eager attention and undefined weights."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with no_init_weights():
            model = _Model.from_config(config, dtype=torch.float32, attn_implementation="eager")
        if (folder / "generation_config.json").is_file():
            model.generation_config = _GenerationConfig.from_pretrained(
                folder, local_files_only=True
            )
    except Exception as error:  # transformers raises many
        raise SourceError(f"transformers cannot load the checkpoint: {one_line(error)}") from error
    complete_rules(model)
    model.tie_weights()
    return model.eval()


def complete_rules(model: Any) -> None:
    """Complete the special ids; raise `SourceError` for an end token that pads or begins."""
    rules = model.generation_config
    config = model.config.get_text_config(decoder=True)
    for name in _SPECIAL_IDS:
        if getattr(rules, name) is None:
            setattr(rules, name, getattr(config, name, None))
    never_ends = (config.pad_token_id, config.bos_token_id)
    if model.config.model_type == "florence2" and rules.eos_token_id in never_ends:
        raise SourceError(
            f"generation_config.json has eos_token_id {rules.eos_token_id}, which pads or begins"
            f" answers; set it to {config.eos_token_id}"
        )


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of floats, float32 if they have several; raise `SourceError` for fp8."""
    dtypes = set[str]()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                dtypes.add(tensors.get_slice(name).get_dtype())
    if others := sorted(dtypes - _FLOATS.keys() - _NO_FLOATS):
        raise SourceError(
            f"weights are stored in {', '.join(others)}; allowed: {', '.join(_FLOATS)}"
        )
    floats = dtypes - _NO_FLOATS
    return _FLOATS[floats.pop()] if len(floats) == 1 else torch.float32


def _places(folder: Path, model: Any, expected: Mapping[str, object]) -> dict[str, _Place]:
    """Return the model's stored tensors under transformers' names, as `from_pretrained` does."""
    renamings: Any = get_model_conversion_mapping(model)
    places = {}
    for shard in weight_files(folder):
        with safe_open(shard, framework="pt") as tensors:
            for stored in tensors.keys():  # noqa: SIM118 (not a dict)
                prefix = model.base_model_prefix
                name, _ = rename_source_key(stored, renamings, [], prefix, dict(expected))
                if stored in expected and name not in expected:
                    name = stored
                if name in expected:
                    shape = tuple(tensors.get_slice(stored).get_shape())
                    places[name] = _Place(shard, stored, shape)
    return places


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    """Load a model in `dtype`; raise `SourceError` if a weight is missing or of another shape."""
    CheckpointTensors.open(folder)
    try:
        model = _Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:  # transformers raises many
        raise SourceError(f"transformers cannot load the checkpoint: {one_line(error)}") from error
    complete_rules(model)
    return model.eval()


def write_decoder_weights(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Write all weights but those of the vision tower and the projector, in their dtype, under
    transformers' names.

    A decoder derives every other precision from this file when it starts. The tensors are mapped
    from their shards: the copy takes page cache, no memory.
    """
    weights = {
        name: tensor.contiguous()
        for name, tensor in tensors.items()
        if not name.startswith(VISION_PREFIXES)
    }
    save_file(weights, output, metadata={"format": "pt"})
