import shutil
from pathlib import Path

import pytest

from export.artifacts.onnx_graphs import write_int8
from wire.artifacts.manifest import vision_encoder_file


@pytest.fixture
def int8_artifacts(artifacts: Path, tmp_path: Path) -> Path:
    """The artifacts of an embedded model with an int8 encoder, in addition to the encoders in the
    catalog.
    """
    folder = Path(shutil.copytree(artifacts, tmp_path / "with int8"))
    write_int8(folder / vision_encoder_file("float32"), folder / vision_encoder_file("int8"))
    return folder
