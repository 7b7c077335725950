"""The properties of a run as its report shows them."""

from pathlib import Path

from diptych_client import TaskParameters
from diptych_client.evaluation.evaluator import RunRecord
from diptych_client.evaluation.questions import Sample
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import FailureLog


def test_lists_are_written_as_the_command_line_takes_them(tmp_path: Path) -> None:
    url = "http://user:secret@host:1/"
    question = TaskParameters(labels=("car", "red bus"))
    samples = [Sample(ImageFile("a.png", 1, 1), (question,), None)]
    with FailureLog(tmp_path / "failures.jsonl") as failures:
        settings = {"split": ["a", "b"]}
        rows = dict(RunRecord.of(url, settings, [], samples, failures, {}).rows())
    assert rows["split"] == "a,b"
    assert rows["requests"] == "labels=car,red bus"
    assert rows["service"] == "http://host:1"
