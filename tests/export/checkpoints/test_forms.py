"""Every form of checkpoint loads exactly, or is refused with its words."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.forms import wrapper_of
from export.checkpoints.sources import PICKLED_FILE, WEIGHTS_FILE
from tests.support.adapter_forms import ADAPTER_FORMS
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


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Base, tuple[Path, Loaded]]:
    written: dict[Base, tuple[Path, Loaded]] = {}
    for base in {form.base for form in FORMS}:
        folder = tmp_path_factory.mktemp("base")
        write_base(base, folder)
        written[base] = (folder, read(base, folder))
    return written


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.base}, {form.name}")
def test_outcome_is_the_documented_one(
    form: Form, bases: dict[Base, tuple[Path, Loaded]], tmp_path: Path
) -> None:
    folder, expected = bases[form.base]
    given = outcome(form, folder, expected, tmp_path / "form")
    assert given == OUTCOMES[form.base][form.name]
    assert given == "exact" or given.startswith("refused: ")
    assert "Traceback" not in given


@pytest.mark.parametrize(
    ("base", "wrapper", "has_head"),
    [
        (MICROSOFT, "_orig_mod.", False),
        (MICROSOFT, "module.model.", False),
        (FLORENCE, "_orig_mod.module.", False),
        (FLORENCE, "base_model.model.", True),
        (FLORENCE, "model.", True),
        (FLORENCE, "model.", False),
        (PALIGEMMA, "model._orig_mod.", False),
    ],
)
@pytest.mark.parametrize("is_pickled", [False, True])
def test_wrappers_of_all_names_are_taken_off(
    base: Base,
    wrapper: str,
    has_head: bool,
    is_pickled: bool,
    bases: dict[Base, tuple[Path, Loaded]],
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

    form = Form(base, wrapper, change)
    assert outcome(form, folder, expected, tmp_path / "form") == "exact"


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


def test_every_documented_form_is_built() -> None:
    built: set[tuple[str, str]] = {(form.base, form.name) for form in FORMS}
    built |= {(form.base, form.name) for form in ADAPTER_FORMS}
    assert built == {(base, name) for base, outcomes in OUTCOMES.items() for name in outcomes}
