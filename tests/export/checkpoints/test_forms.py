"""Every form of checkpoint and of adapter loads exactly, or is refused with its words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.forms import wrapper_of
from export.checkpoints.sources import PICKLED_FILE, WEIGHTS_FILE
from tests.support import adapter_forms, checkpoint_forms
from tests.support.adapter_forms import ADAPTER_FORMS, AdapterForm
from tests.support.checkpoint_forms import (
    FLORENCE,
    FORMS,
    MICROSOFT,
    OUTCOMES,
    PALIGEMMA,
    Base,
    Form,
    Loaded,
    outcome,
    read,
    write_base,
)

ALL: dict[str, Form | AdapterForm] = {f"{form.base}, {form.name}": form for form in FORMS}
ALL |= {f"{form.base}, {form.name}": form for form in ADAPTER_FORMS}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Loaded | None]]:
    written: dict[str, tuple[Path, Loaded | None]] = {}
    for form in ALL.values():
        if form.base not in written:
            folder = tmp_path_factory.mktemp("base")
            if isinstance(form, Form):
                write_base(form.base, folder)
                written[form.base] = (folder, read(form.base, folder))
            else:
                adapter_forms.write_base(form.base, folder)
                written[form.base] = (folder, None)
    return written


@pytest.mark.parametrize("name", ALL)
def test_the_outcome_is_the_documented_one(
    name: str, bases: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    form = ALL[name]
    folder, expected = bases[form.base]
    if isinstance(form, Form):
        result = checkpoint_forms.outcome(form, folder, expected, tmp_path / "form")
    else:
        result = adapter_forms.outcome(form, folder, tmp_path / "adapter")
    assert result == OUTCOMES[form.base][form.name]
    assert result == "exact" or result.startswith("refused: ")


def test_every_documented_form_is_built() -> None:
    documented = set[str]()
    for base, outcomes in OUTCOMES.items():
        documented |= {f"{base}, {name}" for name in outcomes}
    assert ALL.keys() == documented


@pytest.mark.parametrize(
    ("base", "wrapper", "has_head", "is_pickled"),
    [
        (MICROSOFT, "_orig_mod.", False, True),
        (MICROSOFT, "module.model.", False, False),
        (FLORENCE, "_orig_mod.module.", False, False),
        (FLORENCE, "base_model.model.", True, False),
        (FLORENCE, "model.", True, True),
        (FLORENCE, "model.", False, False),
        (PALIGEMMA, "model._orig_mod.", False, True),
    ],
)
def test_wrappers_of_all_names_are_taken_off(
    base: Base,
    wrapper: str,
    has_head: bool,
    is_pickled: bool,
    bases: dict[str, tuple[Path, Any]],
    tmp_path: Path,
) -> None:
    folder, expected = bases[base]

    def change(copy: Path) -> None:
        tensors = load_file(copy / WEIGHTS_FILE)
        if has_head:
            tensors["lm_head.weight"] = tensors["model.language_model.shared.weight"]
        wrapped = {wrapper + name: tensor.clone() for name, tensor in tensors.items()}
        if is_pickled:
            torch.save(wrapped, copy / PICKLED_FILE)
            (copy / WEIGHTS_FILE).unlink()
        else:
            save_file(wrapped, copy / WEIGHTS_FILE)

    assert outcome(Form(base, wrapper, change), folder, expected, tmp_path / "form") == "exact"


@pytest.mark.parametrize(
    ("names", "wrapper"),
    [
        (["model.vision_tower.a", "model.language_model.layers.0"], ""),
        (["model.vision_tower.a", "model.language_model.model.layers.0"], "model."),
        (["model.vision_tower.a", "model.image_projection"], "model."),
        (["module.model.vision_tower.a", "module.model.language_model.b"], "module."),
        (["module.lm_head.weight", "image_projection"], ""),
        ([], ""),
    ],
)
def test_a_wrapper_is_told_from_a_part(names: list[str], wrapper: str) -> None:
    assert wrapper_of(names) == wrapper
