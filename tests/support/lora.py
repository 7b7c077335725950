"""Random LoRA adapters, made by peft over a checkpoint in transformers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.support.export_cli import ROOT
from wire.artifacts.adapter_folder import WEIGHTS_FILE

LAYERS = r".*language_model.*(_proj|fc1|fc2)"
# All layers of Florence-2's vision tower that have other names in Microsoft's code
TOWER = r".*vision_tower.*(qkv|proj|fc1|fc2|convs\.[0-9]\.conv)"
PREFIX = "base_model.model."
# Both parts: linear layers and convolutions by pattern; names that hit both, beside whole weights.
VISION_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "florence-2-mini": {
        "target_modules": (
            rf"{LAYERS}|.*vision_tower.*(qkv|proj|fc1|convs\.[0-9]\.conv)|.*image_projection"
        )
    },
    "paligemma-mini": {
        "target_modules": ["q_proj", "v_proj", "fc2", "patch_embedding"],
        "modules_to_save": ["multi_modal_projector"],
    },
}
_NAMES_OF_2024 = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
# An adapter's product relative to its layer: it changes answers and leaves them readable.
_STRENGTH = 0.3


def write_adapter(model: Any, folder: Path, seed: int, **options: Any) -> Path:
    """Write a random adapter of `model` in PEFT's format; leave the model as it was."""
    tuned = peft_model(model, seed, options)
    save_adapter(tuned, folder)
    tuned.unload()
    return folder


def peft_model(model: Any, seed: int, options: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS, **options}
    config = LoraConfig(**values)
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            strength = _STRENGTH if "lora_B" in name else 1.0
            random = torch.randn(weight.shape, generator=generator)
            weight.data.copy_(random * strength / weight[0].numel() ** 0.5)
        elif "modules_to_save" in name:
            random = torch.randn(weight.shape, generator=generator)
            weight.data += _STRENGTH * weight.data.std() * random
    return tuned


def save_adapter(tuned: Any, folder: Path) -> None:
    tuned.save_pretrained(str(folder))


def rename_weights(folder: Path, renamed: Callable[[str], str]) -> None:
    """Rename the tensors of an adapter, whose prefix stays."""
    tensors = load_file(folder / WEIGHTS_FILE)
    for name in list(tensors):
        tensors[PREFIX + renamed(name.removeprefix(PREFIX))] = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS_FILE)


def name_of_2024(name: str) -> str:
    """Return PaliGemma's name of a weight before transformers 4.52."""
    for start, older in _NAMES_OF_2024.items():
        if name.startswith(start):
            return older + name.removeprefix(start)
    return name


def write_catalog(path: Path, adapters: Mapping[str, Mapping[str, Any]]) -> Path:
    rows = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    rows += [{"id": adapter_id, **row} for adapter_id, row in adapters.items()]
    path.write_text(yaml.safe_dump({"models": rows}, sort_keys=False), encoding="utf-8")
    return path


def merged(model: Any, folder: Path) -> Any:
    """Return `model` with an adapter merged into its weights, in place."""
    return PeftModel.from_pretrained(model, folder).merge_and_unload()


def unmerged(model: Any, folder: Path) -> Any:
    """Return `model` with the layers of an adapter beside its own, in place."""
    PeftModel.from_pretrained(model, folder)
    return model.eval()
