"""Runs of `diptych annotate` that are refused: wrong folders, formats, and names from an untrusted
server.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client.annotate import AgreementRule, DatasetFormat
from diptych_client.cli.folder import AnnotateCommand, annotate_folder
from diptych_client.cli.options import ConnectionOptions, TaskOptions
from diptych_client.long_runs import RunError
from tests.support.scripted_services import Script, serving_rest


@pytest.fixture
def command(tmp_path: Path) -> AnnotateCommand:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    return AnnotateCommand(
        folder=tmp_path / "images",
        out=tmp_path / "out",
        dataset_format=DatasetFormat.coco,
        task_options=TaskOptions("t"),
        models=(),
        consensus=None,
        concurrency=1,
    )


def refusal(command: AnnotateCommand, models: list[str], result: str = "detections") -> str:
    """Return the error of a folder that cannot be annotated with the task of a service."""
    task = {"id": "t", "description": "", "result": result, "parameters": {}, "models": models}
    with (
        serving_rest(Script([], listings={"/v1/tasks": [task]})) as url,
        pytest.raises(RunError) as refused,
    ):
        annotate_folder(ConnectionOptions(url, None, 5.0, 0), command)
    return str(refused.value)


@pytest.mark.parametrize(
    "model", ["x/../../evil", "..", ".hidden", "a\\b", "a\0", "A", "", "a" * 201, "a\n"]
)
def test_a_model_id_that_is_no_file_name_is_refused_before_a_file_is_written(
    command: AnnotateCommand, tmp_path: Path, model: str
) -> None:
    assert "cannot name a journal" in refusal(
        replace(command, consensus=AgreementRule()), ["good", model]
    )
    assert {path.name for path in tmp_path.rglob("*")} <= {
        "images",
        "a.png",
        "out",
        "journal-good.jsonl",
    }


def test_a_format_without_room_for_the_results_is_refused_before_a_request(
    command: AnnotateCommand,
) -> None:
    expected = "coco holds boxes and masks, but the task's result is text: use --format jsonl"
    assert refusal(command, ["good"], "text") == expected
    assert not command.out.exists()


def test_the_error_names_the_folder_of_images_and_the_output_in_it(
    command: AnnotateCommand,
) -> None:
    out = command.folder / "out"
    expected = (
        f"--out {out} must be outside the image folder {command.folder}, and must not contain it"
    )
    assert refusal(replace(command, out=out), ["good"]) == expected
