from pathlib import Path

import pytest

from tests.support.export_cli import MODELS


@pytest.fixture
def checkpoint(model_id: str) -> Path:
    """The checkpoint folder of an embedded model."""
    return MODELS / model_id
