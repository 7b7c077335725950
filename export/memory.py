"""Memory of the catalog's released models: `python -m export.memory` prints the tables of
docs/operations.md.

A base for fine-tuning has a row only at a resolution that no other model of its size has.

Weights are counted on the published configurations, without loading any; slots by the shapes of the
runners' KV caches. The other memory of a process is an estimated allowance.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, Florence2Config, PaliGemmaConfig

from export.checkpoints.bases import CATALOG_FILE
from export.checkpoints.random_weights import SHAPES
from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.models.florence2 import Bart
from runners.models.paligemma import Gemma
from runners.models.weights import DecoderWeights
from runners.options import CUDA_RESERVE_BYTES, default_positions, slots_that_fit
from runners.tokens.choice import choice_bytes
from tasks.catalog import CatalogEntry, Device, Part, Precision, load_catalog

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types

_GB = 1e9
_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_NUM_SLOTS = 16  # the default of DIPTYCH_DECODER_MAX_BATCH_SIZE on a CPU
_MAX_SLOTS = 256  # the largest value of that setting
# Per card, beside the runner's own reserve: CUDA contexts. Estimated, not measured.
_CONTEXT_BYTES = 500_000_000
_CARDS_GB = {"T4, 16 GB": 16, "L4, 24 GB": 24, "H100, 80 GB": 80}  # source: NVIDIA's data sheets
_ALL_LAYERS = 1000

_SHAPE_OF = dict[str, str]()
for _size in ("florence-2-base", "florence-2-large"):
    _SHAPE_OF |= {_size: _size, f"{_size}-ft": _size}
for _size in ("paligemma-3b", "paligemma-2-3b", "paligemma-2-10b", "paligemma-2-28b"):
    for _name in ("mix-224", "mix-448", "pt-896"):
        _SHAPE_OF[f"{_size}-{_name}"] = f"{_size}-mix-224"


@dataclass(frozen=True, slots=True)
class PartSize:
    """Number of weights of an encoder or a decoder, by their treatment at int8."""

    num_matrix: int  # weights of linear layers
    num_other: int  # embeddings, convolutions, norms, biases
    num_tied: int = 0  # embedding tied to the output head: int8 adds a quantised copy

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied ones counted once."""
        return self.num_matrix + self.num_other

    def num_bytes(self, precision: Precision) -> int:
        """Return the weights' bytes; int8 quantises linear layers only, the rest stays float32."""
        if precision == "int8":
            return self.num_matrix + self.num_tied + self.num_other * _BYTES["float32"]
        return self.num_parameters * _BYTES[precision]


@dataclass(frozen=True, slots=True)
class ModelSize:
    """One model: its weights, and the KV cache values per slot and position."""

    entry: CatalogEntry
    parts: dict[Part, PartSize]
    num_position_values: int
    num_image_tokens: int
    num_tokens: int  # vocabulary
    pool_bytes: int  # adapters, on a card

    def weights_gb(self, part: Part, device: Device) -> float:
        """Return the size of a part's weights at its default precision."""
        return self.parts[part].num_bytes(self.entry.precision[device][part]) / _GB

    def slot_gb(self, device: Device) -> float:
        """Return the size of a full slot; on a card it is allocated at the start."""
        decoder = self.entry.precision[device]["decoder"]
        limit = default_positions(device, self.num_image_tokens)
        window = self.entry.context_window
        num_values = self.num_position_values * min(limit or window, window)
        return num_values * _BYTES["float32" if decoder == "int8" else decoder] / _GB

    def num_slots(self, card_gb: float) -> int:
        """Return the number of slots that fit on a card beside the weights and the allowance."""
        free_bytes = int((card_gb - self.card_weights_gb) * _GB) - _CONTEXT_BYTES
        slot_bytes = int(self.card_slot_gb * _GB)
        return slots_that_fit(free_bytes, CUDA_RESERVE_BYTES, slot_bytes, limit=_MAX_SLOTS)

    @property
    def card_weights_gb(self) -> float:
        """The weights of both parts on a card."""
        return sum(self.weights_gb(part, "cuda") for part in self.parts)

    @property
    def card_slot_gb(self) -> float:
        """A slot on a card, with the memory in which its tokens are chosen."""
        return self.slot_gb("cuda") + choice_bytes(self.num_tokens) / _GB


def model_sizes() -> Iterator[ModelSize]:
    """Yield the sizes of every released model of the catalog."""
    for entry in load_catalog(CATALOG_FILE).values():
        if entry.id in _SHAPE_OF:
            shape = SHAPES[_SHAPE_OF[entry.id]]
            num_image_tokens = (
                shape.num_image_tokens * entry.resolution**2 // shape.image_size_px**2
            )
            config = published_config(entry)
            text: Any = config.text_config
            with torch.device("meta"):
                model = _Model.from_config(config).model
            vision = nn.ModuleList([model.vision_tower, model.multi_modal_projector])
            embeddings = model.get_input_embeddings().weight.numel()
            yield ModelSize(
                entry,
                {
                    "encoder": _part_size(vision, num_tied=0),
                    "decoder": _part_size(model.language_model, num_tied=embeddings),
                },
                num_position_values(config),
                num_image_tokens,
                text.vocab_size,
                pool_bytes(text, model.language_model),
            )


def num_position_values(config: Florence2Config | PaliGemmaConfig) -> int:
    """Return a slot's KV cache values per position: keys and values of all layers and heads.

    Florence-2 has as many for cross-attention as for self-attention.
    """
    text: Any = config.text_config
    if isinstance(config, Florence2Config):
        return 2 * int(2 * text.decoder_layers * text.d_model)
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim)


def pool_bytes(text_config: Any, language_model: nn.Module) -> int:
    """Return the size of a runner's whole pool of adapters over the layers of a decoder."""
    adapters = Adapters("meta")
    source = language_model.state_dict()
    weights = DecoderWeights(source, "float16", torch.device("meta"), adapters=adapters)
    body = Bart if hasattr(text_config, "encoder_layers") else Gemma
    body(text_config.to_dict(), weights)
    adapters.open_pool(POOL_RANK, sys.maxsize)
    return adapters.num_bytes_with({})


def published_config(entry: CatalogEntry) -> Florence2Config | PaliGemmaConfig:
    config: Any = SHAPES[_SHAPE_OF[entry.id]].config(_ALL_LAYERS)
    text = config.text_config.to_dict()
    vision = config.vision_config.to_dict()
    if isinstance(config, Florence2Config):
        text |= {"max_position_embeddings": entry.context_window}
        return Florence2Config(text_config=text, vision_config=vision)
    vision |= {"image_size": entry.resolution, "projection_dim": text["hidden_size"]}
    return PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=text["hidden_size"]
    )


def _part_size(module: nn.Module, num_tied: int) -> PartSize:
    num_weights = sum(weight.numel() for weight in module.parameters())
    linears = {each.weight for each in module.modules() if isinstance(each, nn.Linear)}
    num_matrix = sum(weight.numel() for weight in linears)
    return PartSize(num_matrix, num_weights - num_matrix, num_tied)


def memory_tables() -> str:
    """Return both tables as Markdown, in GB of 10^9 bytes."""
    header = ["model", "encoder, CPU", "decoder, CPU", "a full slot, CPU"]
    header += ["encoder, CUDA", "decoder, CUDA", "a slot, CUDA", "pool of adapters, CUDA"]
    cards_header = ["model", f"with {_NUM_SLOTS} slots, GB"]
    cards_header += [f"slots on {card}" for card in _CARDS_GB]
    reserve_gb = (_CONTEXT_BYTES + CUDA_RESERVE_BYTES) / _GB
    rows = []
    cards_rows = []
    for size in model_sizes():
        cells = [size.entry.id]
        for device, precisions in size.entry.precision.items():
            for part in size.parts:
                cells.append(f"{precisions[part]} {size.weights_gb(part, device):.2f}")
            cells.append(f"{size.slot_gb(device):.3f}")
        rows.append([*cells, f"{size.pool_bytes / _GB:.2f}"])
        total_gb = size.card_weights_gb + _NUM_SLOTS * size.card_slot_gb + reserve_gb
        slots = [str(size.num_slots(card_gb) or "none") for card_gb in _CARDS_GB.values()]
        cards_rows.append([size.entry.id, f"{total_gb:.1f}", *slots])
    return f"{_table(header, rows)}\n\n{_table(cards_header, cards_rows)}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


if __name__ == "__main__":
    print(memory_tables())
