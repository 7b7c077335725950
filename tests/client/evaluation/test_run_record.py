"""The properties of a run as its report shows them."""

from pathlib import Path

from diptych_client import TaskParameters
from diptych_client.evaluation.questionnaire import Sample
from diptych_client.evaluation.run_record import Asked, run_record
from diptych_client.inputs.files import ImageFile
from diptych_client.long_runs import FailureLog


def test_lists_are_written_as_the_command_line_takes_them(tmp_path: Path) -> None:
    asked = Asked("http://user:secret@host:1/", {"task": "t"}, {"split": ["a", "b"]})
    question = TaskParameters(labels=("car", "red bus"))
    samples = [Sample(ImageFile("a.png", 1, 1), (question,), None)]
    with FailureLog(tmp_path / "failures.jsonl") as failures:
        rows = dict(run_record(asked, [], samples, failures).rows())
    assert rows["split"] == "a,b"
    assert rows["requests"] == "labels=car,red bus"
    assert rows["service"] == "http://host:1"
