"""Small adapters in PEFT's format, over a base with one layer and tied embeddings."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from runners.adapters.peft import AdapterParts, read_parts
from wire.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits

LAYER = "model.language_model.layers.0.self_attn.q_proj"
EMBEDDINGS = "model.language_model.embed_tokens"
CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj"],
}
IN = 6
OUT = 4
LIMITS = AdapterLimits(max_rank=16, max_bytes=10_000)


def pair(layer: str, rank: int = 2, infix: str = "") -> dict[str, Tensor]:
    name = f"base_model.model.{layer}"
    return {
        f"{name}.lora_A{infix}.weight": torch.ones(rank, IN, dtype=torch.bfloat16),
        f"{name}.lora_B{infix}.weight": torch.ones(OUT, rank, dtype=torch.bfloat16),
    }


def converted(folder: Path, tensors: dict[str, Tensor], **config: Any) -> dict[str, Tensor]:
    return dict(parts(folder, tensors, **config).language)


def parts(folder: Path, tensors: dict[str, Tensor], **config: Any) -> AdapterParts:
    write(folder, tensors, **config)
    return read_parts(folder, folder / "decoder.safetensors", LIMITS)


def write(folder: Path, tensors: dict[str, Tensor], **config: Any) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / WEIGHTS_FILE)
    base = {
        f"{LAYER}.weight": torch.zeros(OUT, IN),
        f"{EMBEDDINGS}.weight": torch.arange(OUT * IN).view(OUT, IN).float(),
    }
    save_file(base, folder / "decoder.safetensors")
