"""Every form of adapter that is supported is read exactly.

Each is made by PEFT over an embedded checkpoint and changed as published ones differ. A form is
exact if its products and whole weights are PEFT's own: with them the tokens are those of PEFT's
model (tests/runners/models, tests/export/test_adapters.py).
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.reference import Reference
from runners.adapters.peft import AdapterParts, read_parts
from tests.support.export_cli import MODELS
from tests.support.lora import LAYERS, TOWER, name_of_2024, peft_model, rename_weights, save_adapter
from tests.support.microsoft_form import microsoft_name
from wire.artifacts.adapter_folder import DOWN, UP, WEIGHTS_FILE, AdapterLimits
from wire.artifacts.manifest import DECODER_FILE

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
MAX_ERROR = 1e-5
HEAD = {"target_modules": f"{LAYERS}|lm_head"}
# Public notebooks have this list; some names match no module.
NOTEBOOK = ["q_proj", "o_proj", "k_proj", "v_proj", "linear", "Conv2d", "lm_head", "fc2"]
SAVED_HEAD = {"modules_to_save": ["lm_head"]}
SAVED_PROJECTOR = {"modules_to_save": ["multi_modal_projector"]}
PATTERNS = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 4}}


def changed(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    """Change every whole weight whose name has `part`."""

    def change_weights(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        for name, tensor in tensors.items():
            if part in name and ".lora_" not in name:
                tensors[name] = change(tensor).contiguous()
        save_file(tensors, folder / WEIGHTS_FILE)

    return change_weights


def untrained_head(tensor: Tensor) -> Tensor:
    weights = load_file(MODELS / FLORENCE / "model.safetensors")
    return weights["model.language_model.shared.weight"].to(tensor.dtype)


with_microsofts_names = partial(rename_weights, renamed=microsoft_name)
with_names_of_2024 = partial(rename_weights, renamed=name_of_2024)


def unchanged(_folder: Path) -> None: ...


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The decoder's weights of an export, against which an adapter is read."""
    files: dict[str, Path] = {}
    for model_id in (FLORENCE, PALIGEMMA):
        files[model_id] = tmp_path_factory.mktemp("base") / DECODER_FILE
        write_decoder_weights(CheckpointTensors.open(MODELS / model_id), files[model_id])
    return files


def weights_of(model: Any) -> dict[str, Tensor]:
    """Return PEFT's products by layer, and its weights of the vision part."""
    weights = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            weights[name] = module.get_delta_weight("default").detach()
        for weight in getattr(module, "modules_to_save", {}).values():
            weights |= weight.state_dict(prefix=f"{name}.")
    weights.pop("lm_head.weight", None)  # a saved copy of the head changes nothing
    return weights


def products_of(parts: AdapterParts) -> dict[str, Tensor]:
    weights = {}
    for name, down in parts.language.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            weights[layer] = parts.language[layer + UP] @ down
    for name, product in parts.products.items():
        matrix = product.up.flatten(1) @ product.down.flatten(1)
        shape = (len(product.up), *product.down.shape[1:])
        weights[name.removesuffix(".weight")] = matrix.view(shape)
    return weights | dict(parts.replaced)


@pytest.mark.parametrize(
    ("model_id", "options", "change"),
    [
        (FLORENCE, {"target_modules": NOTEBOOK}, unchanged),
        (FLORENCE, HEAD, with_microsofts_names),
        (FLORENCE, {"target_modules": f"{LAYERS}|{TOWER}"}, with_microsofts_names),
        (FLORENCE, {"use_rslora": True}, unchanged),
        (FLORENCE, PATTERNS, unchanged),
        (FLORENCE, SAVED_PROJECTOR, unchanged),
        (FLORENCE, SAVED_HEAD, changed("lm_head", untrained_head)),
        (FLORENCE, HEAD, changed("", Tensor.half)),  # QLoRA copies the head in float16
        (PALIGEMMA, {}, with_names_of_2024),
        (PALIGEMMA, {"target_modules": ["q_proj", "v_proj"]}, unchanged),  # of the tower, too
        (PALIGEMMA, {"target_modules": ["lm_head"]}, unchanged),
        (PALIGEMMA, SAVED_PROJECTOR, unchanged),
    ],
)
def test_exact_forms(
    model_id: str,
    options: Mapping[str, Any],
    change: Callable[[Path], None],
    bases: dict[str, Path],
    tmp_path: Path,
) -> None:
    model = peft_model(Reference.load(MODELS / model_id).model, 0, options)
    expected = weights_of(model)
    save_adapter(model, tmp_path)
    change(tmp_path)
    products = products_of(read_parts(tmp_path, bases[model_id], AdapterLimits()))
    assert products.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, products[name], atol=MAX_ERROR), name
