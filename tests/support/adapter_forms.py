"""The forms in which people have adapters, and what the runner and the export do with each.

Each is made by PEFT over an embedded checkpoint and changed as published ones differ. A form is
exact if its products and whole weights are PEFT's own: with them the tokens are those of PEFT's
model (tests/runners/models, tests/export/test_adapters.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.reference import Reference
from runners.adapters.peft import AdapterParts, read_parts
from tests.support.export_cli import MODELS
from tests.support.lora import LAYERS, peft_model, save_adapter
from tests.support.microsoft_form import microsoft_name, update_json
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    DOWN,
    UP,
    WEIGHTS_FILE,
    AdapterError,
    AdapterLimits,
)
from wire.artifacts.manifest import DECODER_FILE

AdapterBase = Literal["Florence-2, adapter", "PaliGemma, adapter"]
FLORENCE: AdapterBase = "Florence-2, adapter"
PALIGEMMA: AdapterBase = "PaliGemma, adapter"
MODEL_IDS: dict[AdapterBase, str] = {FLORENCE: "florence-2-mini", PALIGEMMA: "paligemma-mini"}
PREFIX = "base_model.model."
_HEAD = f"{LAYERS}|lm_head"
# Public notebooks have this list; some names match no module.
_NOTEBOOK = ["q_proj", "o_proj", "k_proj", "v_proj", "linear", "Conv2d", "lm_head", "fc2"]
# All layers of Florence-2's vision tower that have other names in Microsoft's code
TOWER = r".*vision_tower.*(qkv|proj|fc1|fc2|convs\.[0-9]\.conv)"
_MAX_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class AdapterForm:
    """PEFT's options over a base, and a change to the folder that it saves."""

    base: AdapterBase
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Path], None] = lambda _folder: None
    max_bytes: int = AdapterLimits().max_bytes


def write_base(base: AdapterBase, folder: Path) -> None:
    """Write what an adapter is read against: the decoder's weights of an export."""
    tensors = CheckpointTensors.open(MODELS / MODEL_IDS[base])
    write_decoder_weights(tensors, folder / DECODER_FILE)


def outcome(form: AdapterForm, base: Path, folder: Path) -> str:
    """Make an adapter in a new folder; return "exact", "other weights" or the refusal."""
    model = peft_model(Reference.load(MODELS / MODEL_IDS[form.base]).model, 0, form.options)
    expected = _weights_of(model)
    save_adapter(model, folder)
    form.change(folder)
    try:
        parts = read_parts(folder, base / DECODER_FILE, AdapterLimits(max_bytes=form.max_bytes))
    except AdapterError as error:
        return f"refused: {str(error).replace(str(folder), 'FOLDER')}"
    return "exact" if _equal(expected, _read(parts)) else "other weights"


def _weights_of(model: Any) -> dict[str, Tensor]:
    """Return PEFT's products by layer, and its weights of the vision part."""
    weights = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            weights[name] = module.get_delta_weight("default").detach()
        for weight in getattr(module, "modules_to_save", {}).values():
            weights |= weight.state_dict(prefix=f"{name}.")
    return weights


def _read(parts: AdapterParts) -> dict[str, Tensor]:
    weights = {}
    for name, down in parts.language.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            weights[layer] = parts.language[layer + UP] @ down
    for name, product in parts.vision.products.items():
        matrix = product.up.flatten(1) @ product.down.flatten(1)
        shape = (len(product.up), *product.down.shape[1:])
        weights[name.removesuffix(".weight")] = matrix.view(shape)
    return weights | dict(parts.vision.replaced)


def _equal(expected: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> bool:
    # A saved copy of the head changes nothing, and is not read.
    changing = {name: tensor for name, tensor in expected.items() if name != "lm_head.weight"}
    return changing.keys() == read.keys() and all(
        torch.allclose(tensor, read[name], atol=_MAX_ERROR) for name, tensor in changing.items()
    )


def _config(**values: object) -> Callable[[Path], None]:
    return lambda folder: update_json(folder / CONFIG_FILE, **values)


def rename(folder: Path, renamed: Callable[[str], str]) -> None:
    """Rename the tensors of an adapter, without PEFT's prefix."""
    tensors = load_file(folder / WEIGHTS_FILE)
    for name in list(tensors):
        tensors[PREFIX + renamed(name.removeprefix(PREFIX))] = tensors.pop(name)
    save_file(tensors, folder / WEIGHTS_FILE)


def with_microsofts_names(folder: Path) -> None:
    rename(folder, microsoft_name)


def _with_old_names(folder: Path) -> None:
    """PaliGemma's names before transformers 4.52."""
    old = {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }

    def renamed(name: str) -> str:
        for new, before in old.items():
            if name.startswith(new):
                return before + name.removeprefix(new)
        return name

    rename(folder, renamed)


def _changed(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Change every whole weight whose name has `part`."""

    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        for name, tensor in tensors.items():
            if part in name and ".lora_" not in name:
                tensors[name] = change(tensor).contiguous()
        save_file(tensors, folder / WEIGHTS_FILE)

    return changed


def _own_head(tensor: Tensor) -> Tensor:
    weights = load_file(MODELS / MODEL_IDS[FLORENCE] / "model.safetensors")
    return weights["model.language_model.shared.weight"].to(tensor.dtype)


_SAVED_HEAD = {"modules_to_save": ["lm_head"]}
_SAVED_EMBEDDINGS = {"modules_to_save": ["embed_tokens"]}

ADAPTER_FORMS = (
    AdapterForm(FLORENCE, "attention and feed-forward layers"),
    AdapterForm(
        FLORENCE, "the notebooks' target_modules, lm_head included", {"target_modules": _NOTEBOOK}
    ),
    AdapterForm(FLORENCE, "Microsoft's names", {"target_modules": _HEAD}, with_microsofts_names),
    AdapterForm(
        FLORENCE,
        "Microsoft's names, vision tower included",
        {"target_modules": f"{LAYERS}|{TOWER}"},
        with_microsofts_names,
    ),
    AdapterForm(FLORENCE, "rsLoRA", {"use_rslora": True}),
    AdapterForm(
        FLORENCE,
        "rank_pattern, alpha_pattern",
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 4}},
    ),
    AdapterForm(
        FLORENCE, "modules_to_save: the projector", {"modules_to_save": ["multi_modal_projector"]}
    ),
    AdapterForm(
        FLORENCE,
        "modules_to_save: lm_head, not trained",
        _SAVED_HEAD,
        _changed("lm_head", _own_head),
    ),
    AdapterForm(FLORENCE, "modules_to_save: lm_head, trained", _SAVED_HEAD),
    AdapterForm(
        FLORENCE,
        "QLoRA: copies of the head in float16",
        {"target_modules": _HEAD},
        _changed("", Tensor.half),
    ),
    AdapterForm(
        FLORENCE,
        "copies of the head above DIPTYCH_MAX_ADAPTER_MB",
        {"target_modules": _HEAD},
        max_bytes=500_000,
    ),
    AdapterForm(FLORENCE, "trainable_token_indices", {"trainable_token_indices": [5, 6]}),
    AdapterForm(FLORENCE, "DoRA", {"use_dora": True}),
    AdapterForm(FLORENCE, "biases", {"bias": "lora_only"}),
    AdapterForm(FLORENCE, "LoftQ", change=_config(init_lora_weights="loftq")),
    AdapterForm(PALIGEMMA, "attention and feed-forward layers"),
    AdapterForm(PALIGEMMA, "names before transformers 4.52", change=_with_old_names),
    AdapterForm(
        PALIGEMMA,
        "q_proj and v_proj, vision tower included",
        {"target_modules": ["q_proj", "v_proj"]},
    ),
    AdapterForm(PALIGEMMA, "lm_head", {"target_modules": ["lm_head"]}),
    AdapterForm(
        PALIGEMMA, "modules_to_save: the projector", {"modules_to_save": ["multi_modal_projector"]}
    ),
    AdapterForm(PALIGEMMA, "modules_to_save: embed_tokens, trained", _SAVED_EMBEDDINGS),
)
