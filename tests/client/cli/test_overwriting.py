"""No command replaces a file that it did not write, unless it is told to."""

import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from diptych_client import Comparison
from diptych_client.cli import app
from diptych_client.evaluation.formats.writing import DatasetFormat, write_dataset
from diptych_client.evaluation.job import Job
from diptych_client.long_runs import Outputs, RunError
from diptych_client.requests import AnswerOptions, TaskParameters
from diptych_client.transports.rest_messages import comparison_json
from tests.client.cli.test_evaluation import TASK, model
from tests.support.client_answers import DETECTIONS, SIZE, answer, record
from tests.support.evaluations import write_images
from tests.support.scripted_services import Script, serving_rest

ANNOTATE = ("annotate", "photos", "--task", TASK, "--out", "out")
YOLO = (*ANNOTATE, "--format", "yolo")
EVALUATE = ("evaluate", "photos", "--task", TASK, "--out", "out")
PREDICT = ("predict", "--task", TASK)
JOB = Job(TASK, "first", TaskParameters(), AnswerOptions())


def run(monkeypatch: pytest.MonkeyPatch, words: Sequence[str], script: Script) -> int:
    """Run a command over a service with one model and return its exit status."""
    task = {"id": TASK, "description": "", "result": "detections", "parameters": {}}
    script.listings = {
        "/v1/tasks": [task | {"models": ["first"]}],
        "/v1/models": [asdict(model("first"))],
    }
    found = answer(DETECTIONS, model="first")
    script.steps[:] = [found] * 9
    if words[0] == "compare":
        comparison = comparison_json(Comparison("id", TASK, SIZE, (found,)))
        script.steps[:] = [json.dumps(comparison).encode()] * 9
    with serving_rest(script) as url:
        monkeypatch.setattr(sys, "argv", ["diptych", "--url", url, *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (ANNOTATE, "out/annotations.json"),
        (ANNOTATE, "out/labels/val/z.txt"),
        (ANNOTATE, "out/failures.jsonl"),
        (YOLO, "out/dataset.yaml"),
        (YOLO, "out/labels/train/a.txt"),
        (YOLO, "out/images/train/a.png"),
        ((*ANNOTATE, "--format", "jsonl"), "out/answers.jsonl"),
        (EVALUATE, "out/report.html"),
        (EVALUATE, "out/report.md"),
        (EVALUATE, "out/report.json"),
        (EVALUATE, "out/failures.jsonl"),
        ((*PREDICT, "photos/a.png", "--draw", "photos/b.png"), "photos/b.png"),
        ((*PREDICT, "photos", "--draw", "drawn"), "drawn/c.png"),
        (("compare", "photos/a.png", "--task", TASK, "--draw", "x.png"), "x.png"),
        (("reports", "report", "--out", "x.html"), "x.html"),
    ],
)
def test_a_file_of_another_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"))
    script = Script([])
    run(monkeypatch, ("evaluate", "photos", "--task", TASK, "--out", "report"), script)
    script.received.clear()
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    assert run(monkeypatch, words, script) == 1
    said = capsys.readouterr().err
    assert f"{name} exists and is not as" in said
    assert "--overwrite" in said
    assert path.read_bytes() == b"mine"
    assert script.received == []
    assert run(monkeypatch, (*words, "--overwrite"), script) == 0
    if not name.endswith("z.txt"):
        assert path.read_bytes() != b"mine"
        assert run(monkeypatch, words, script) == 0  # its own file


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (ANNOTATE, "out/journal.jsonl"),
        (EVALUATE, "out/answers.jsonl"),
        (("annotate", "photos.zip", "--task", TASK, "--out", "out"), "out/input/mine.txt"),
    ],
)
def test_a_log_or_a_folder_of_another_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"))
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("photos/a.png")
    path = Path(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    for option in ((), ("--overwrite",)):
        assert run(monkeypatch, (*words, *option), Script([])) == 1
        assert path.read_bytes() == b"mine"


def write(folder: Path, name: str = "a.png") -> None:
    with Outputs(folder / "out") as outputs:
        write_dataset(DatasetFormat.yolo, outputs, folder, [record(DETECTIONS, name)], JOB)


def test_a_label_that_a_person_corrected_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    write(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").write_bytes(b"changed")
    write(tmp_path)
    assert (tmp_path / "out/images/train/a.png").read_bytes() == b"changed"
    labels = tmp_path / "out/labels/train/a.txt"
    labels.write_text("0 .5 .5 1 1\n")
    with pytest.raises(RunError, match=r"a\.txt exists and is not as this command wrote it"):
        write(tmp_path)
    assert labels.read_text() == "0 .5 .5 1 1\n"


def test_a_relative_link_leads_to_its_image(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.png").write_bytes(b"picture")
    (tmp_path / "a.png").symlink_to("disk/a.png")
    write(tmp_path)
    image = tmp_path / "out/images/train/a.png"
    assert (image.read_bytes(), image.is_symlink()) == (b"picture", False)


def test_a_file_whose_record_was_cut_is_kept(tmp_path: Path) -> None:
    with Outputs(tmp_path) as outputs:
        outputs.write(tmp_path / "x.txt", "one")
    record_file = tmp_path / "written.jsonl"
    record_file.write_bytes(record_file.read_bytes()[:-9])
    with Outputs(tmp_path) as outputs, pytest.raises(RunError, match=r"x\.txt exists"):
        outputs.write(tmp_path / "x.txt", "two")
    with Outputs(tmp_path, overwrite=True) as outputs:
        outputs.write(tmp_path / "x.txt", "two")
    with Outputs(tmp_path) as outputs:
        outputs.write(tmp_path / "x.txt", "three")
