from dataclasses import replace
from pathlib import Path

import pytest

from export.artifacts.encoders import make_encoders_in_child
from export.artifacts.vision_module import ImageInput
from export.checkpoints.errors import EncoderError, SourceError
from tests.support.export_cli import MODELS

INPUT = ImageInput((192, 192), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def test_failure_of_the_child_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="the vision encoders cannot be made: ") as failure:
        make_encoders_in_child(MODELS / "paligemma-mini", replace(INPUT, mean=(0.5, 0.5)), ["float32"], tmp_path)
    assert "\n" not in str(failure.value)


def test_error_of_the_export_is_raised_from_the_child_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="transformers cannot load the checkpoint"):
        make_encoders_in_child(tmp_path, INPUT, ["float32"], tmp_path)


class Killer:
    """Ends the process that unpickles it, as the kernel does when memory runs out."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        import os

        return os._exit, (9,)


def test_killed_child_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="was killed, probably by the kernel for lack of memory"):
        make_encoders_in_child(tmp_path, Killer(), ["float32"], tmp_path)  # type: ignore[arg-type]
