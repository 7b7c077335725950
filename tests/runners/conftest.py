import shutil
from pathlib import Path

import pytest

from export.artifacts.onnx_graphs import write_at_precision


@pytest.fixture
def int8_artifacts(artifacts: Path, tmp_path: Path) -> Path:
    """The artifacts of an embedded model with an int8 encoder, in addition to the encoders in the
    catalog.
    """
    folder = Path(shutil.copytree(artifacts, tmp_path / "with int8"))
    write_at_precision(folder, "int8")
    return folder
