"""Florence-2 in Microsoft's form, and in the form that the export reads."""

from pathlib import Path

import pytest

from tests.support.microsoft_form import MicrosoftModel, converted, write_microsoft_form


@pytest.fixture(scope="package")
def model() -> MicrosoftModel:
    return MicrosoftModel.random()


@pytest.fixture(scope="package")
def original(model: MicrosoftModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as Microsoft publishes it."""
    folder = tmp_path_factory.mktemp("microsoft")
    write_microsoft_form(model.weights(), folder)
    return folder


@pytest.fixture(scope="package")
def plain(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(original, tmp_path_factory.mktemp("converted") / "plain")
