"""Random LoRA adapters, made by peft over a checkpoint in transformers."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

LAYERS = r".*language_model.*(_proj|fc1|fc2)"
_STRENGTH = 0.3  # of an adapter's product, relative to its layer: changes answers and leaves them readable


def write_adapter(model: Any, folder: Path, seed: int, **options: Any) -> Path:
    """Write a random adapter of `model` in PEFT's format into `folder`; the model is left as it was."""
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS} | options
    config = LoraConfig(**values)
    with _without_warnings():
        tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            random = torch.randn(weight.shape, generator=generator)
            weight.data.copy_(random * (_STRENGTH if "lora_B" in name else 1.0) / weight.shape[1] ** 0.5)
    tuned.save_pretrained(str(folder))
    tuned.unload()
    return folder


def merged(model: Any, folder: Path) -> Any:
    """Return `model` with an adapter merged into its weights, in place."""
    with _without_warnings():
        return PeftModel.from_pretrained(model, folder).merge_and_unload()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide the warning of transformers 5.24 that peft 0.21 reads `is_gradient_checkpointing`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
