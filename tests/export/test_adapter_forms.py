"""Every form of adapter is read exactly, or is refused with the words in docs/models.md."""

from pathlib import Path

import pytest

from tests.support.adapter_forms import (
    ADAPTER_FORMS,
    MODEL_IDS,
    AdapterBase,
    AdapterForm,
    outcome,
    write_base,
)
from tests.support.checkpoint_forms import OUTCOMES


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[AdapterBase, Path]:
    folders = {base: tmp_path_factory.mktemp("base") for base in MODEL_IDS}
    for base, folder in folders.items():
        write_base(base, folder)
    return folders


@pytest.mark.parametrize("form", ADAPTER_FORMS, ids=lambda form: f"{form.base}, {form.name}")
def test_outcome_is_the_documented_one(
    form: AdapterForm, bases: dict[AdapterBase, Path], tmp_path: Path
) -> None:
    given = outcome(form, bases[form.base], tmp_path / "adapter")
    assert given == OUTCOMES[form.base][form.name]
    assert given == "exact" or given.startswith("refused: ")
