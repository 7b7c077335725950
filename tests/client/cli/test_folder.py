"""Runs of `diptych annotate` that are refused: wrong folders, formats, and names from an untrusted
server.
"""

from pathlib import Path

import pytest

from diptych_client.cli.annotate import annotate_images
from diptych_client.cli.options import (
    AnnotateOptions,
    ConnectionOptions,
    InputOptions,
    TaskOptions,
)
from diptych_client.long_runs import RunError
from tests.support.scripted_services import Script, serving_rest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").touch()
    return folder


def refusal(
    folder: Path, options: AnnotateOptions, models: list[str], result: str = "detections"
) -> str:
    """Return the error of a folder that cannot be annotated with the task of a service."""
    task = {"id": "t", "description": "", "result": result, "parameters": {}, "models": models}
    given = ([str(folder)], options, InputOptions(), TaskOptions("t"))
    with (
        serving_rest(Script([], listings={"/v1/tasks": [task]})) as url,
        pytest.raises(RunError) as refused,
    ):
        annotate_images(ConnectionOptions(url, None, 5.0, 0), *given)
    return str(refused.value)


@pytest.mark.parametrize(
    "model", ["x/../../evil", "..", ".hidden", "a\\b", "a\0", "A", "", "a" * 201, "a\n"]
)
def test_a_model_id_that_is_no_file_name_is_refused_before_a_file_is_written(
    folder: Path, tmp_path: Path, model: str
) -> None:
    options = AnnotateOptions(consensus=True, out=tmp_path / "out")
    assert "cannot name a journal" in refusal(folder, options, ["good", model])
    assert {path.name for path in tmp_path.rglob("*")} == {"images", "a.png"}


def test_a_format_without_room_for_the_results_is_refused_before_a_request(
    folder: Path, tmp_path: Path
) -> None:
    expected = "coco holds boxes and masks, but the task's result is text: use --format jsonl"
    options = AnnotateOptions(out=tmp_path / "out")
    assert refusal(folder, options, ["good"], "text") == expected
    assert not (tmp_path / "out").exists()


def test_the_error_names_the_folder_of_images_and_the_output_in_it(folder: Path) -> None:
    out = folder / "out"
    expected = f"--out {out} must be outside the image folder {folder}, and must not contain it"
    assert refusal(folder, AnnotateOptions(out=out), ["good"]) == expected
