"""Every form of checkpoint loads exactly, or is refused with the words in docs/models.md."""

from pathlib import Path

import pytest

from tests.support.adapter_forms import ADAPTER_FORMS
from tests.support.checkpoint_forms import (
    FORMS,
    Base,
    Form,
    Loaded,
    outcome,
    read,
    write_base,
)
from tests.support.form_outcomes import read_outcomes

OUTCOMES = read_outcomes()


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


def test_every_documented_form_is_built() -> None:
    built: set[tuple[str, str]] = {(form.base, form.name) for form in FORMS}
    built |= {(form.base, form.name) for form in ADAPTER_FORMS}
    assert built == {(base, name) for base, outcomes in OUTCOMES.items() for name in outcomes}
