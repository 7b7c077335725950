"""`diptych annotate` against a server that is not to be trusted."""

from pathlib import Path

import pytest

from diptych_client.annotate import AgreementRule, DatasetFormat
from diptych_client.cli.folder import AnnotateCommand, annotate_folder
from diptych_client.cli.options import ConnectionOptions, TaskOptions
from diptych_client.long_runs import RunError
from tests.support.scripted_services import Script, serving_rest


@pytest.mark.parametrize("model", ["x/../../evil", "..", ".hidden", "a\\b", "a\0", "A", "", "a" * 201, "a\n"])
def test_a_model_id_that_is_no_file_name_is_refused_before_a_file_is_written(tmp_path: Path, model: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    task = {"id": "t", "description": "", "result": "detections", "parameters": {}, "models": ["good", model]}
    command = AnnotateCommand(
        folder=tmp_path / "images",
        out=tmp_path / "out",
        dataset_format=DatasetFormat.coco,
        task_options=TaskOptions("t"),
        models=(),
        consensus=AgreementRule(),
        concurrency=1,
    )
    script = Script([], listings={"/v1/tasks": [task]})
    with serving_rest(script) as url, pytest.raises(RunError, match="cannot name a journal"):
        annotate_folder(ConnectionOptions(url, None, 5.0, 0), command)
    assert {path.name for path in tmp_path.rglob("*")} <= {"images", "a.png", "out", "journal-good.jsonl"}
