"""No command replaces a file that it did not write, unless it is told to."""

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from diptych_client import Comparison
from diptych_client.datasets.formats.writing import Target, write_dataset
from diptych_client.datasets.long_runs import Outputs, RunError
from diptych_client.datasets.records import Job
from diptych_client.json_values import to_json
from diptych_client.requests import AnswerOptions, TaskParameters
from tests.client.tools.cli.conftest import Diptych, listings
from tests.support.client_answers import DETECTIONS, SIZE, answer, record
from tests.support.evaluations import write_images
from tests.support.scripted_services import Script

TASK = "object_detection"
ANNOTATE = ("annotate", "photos", "--task", TASK, "--out", "out")
YOLO = (*ANNOTATE, "--format", "yolo")
EVALUATE = ("evaluate", "photos", "--task", TASK, "--out", "out")
PREDICT = ("predict", "--task", TASK)
# a log, and a folder
NEVER_REPLACED = [
    (ANNOTATE, "out/journal.jsonl"),
    (EVALUATE, "out/answers.jsonl"),
    (("annotate", "photos.zip", "--task", TASK, "--out", "out"), "out/input/mine.txt"),
]
JOB = Job(TASK, "first", TaskParameters(), AnswerOptions())


def run(diptych: Diptych, words: Sequence[str], script: Script) -> int:
    """Run a command over a service with one model and return its exit status."""
    script.listings = listings(TASK, "detections", "first")
    star_answer = answer(DETECTIONS, model="first")
    script.steps[:] = [star_answer] * 9
    if words[0] == "compare":
        comparison = to_json(Comparison("id", TASK, SIZE, (star_answer,)))
        script.steps[:] = [json.dumps(comparison).encode()] * 9
    return diptych(script, *words)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        *NEVER_REPLACED,
        (ANNOTATE, "out/annotations.json"),
        (ANNOTATE, "out/labels/val/z.txt"),
        (ANNOTATE, "out/failures.jsonl"),
        (YOLO, "out/dataset.yaml"),
        (YOLO, "out/labels/train/a.txt"),
        (YOLO, "out/images/train/a.png"),
        ((*ANNOTATE, "--format", "jsonl"), "out/answers.jsonl"),
        (EVALUATE, "out/report.html"),
        (EVALUATE, "out/report.json"),
        (EVALUATE, "out/failures.jsonl"),
        ((*PREDICT, "photos/a.png", "--draw", "photos/b.png"), "photos/b.png"),
        ((*PREDICT, "photos", "--draw", "drawn"), "drawn/c.png"),
        (("compare", "photos/a.png", "--task", TASK, "--draw", "x.png"), "x.png"),
    ],
)
def test_file_of_another_is_kept(
    diptych: Diptych,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"))
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("photos/a.png")
    script = Script([])
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    assert run(diptych, words, script) == 1
    if (words, name) in NEVER_REPLACED:
        assert run(diptych, (*words, "--overwrite"), script) == 1
        assert path.read_bytes() == b"mine"
        return
    printed = capsys.readouterr().err
    assert f"{name} exists" in printed
    assert "--overwrite" in printed
    assert path.read_bytes() == b"mine"
    assert script.received == []
    assert run(diptych, (*words, "--overwrite"), script) == 0
    if not name.endswith("z.txt"):
        assert path.read_bytes() != b"mine"
        is_drawing = words[0] in ("predict", "compare")
        assert run(diptych, words, script) == int(is_drawing)  # its own file


def write(folder: Path, name: str = "a.png") -> None:
    with Outputs(folder / "out") as outputs:
        write_dataset(Target("yolo", outputs, folder, JOB), [record(DETECTIONS, name)])


def test_corrected_label_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    write(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").write_bytes(b"changed")
    write(tmp_path)
    assert (tmp_path / "out/images/train/a.png").read_bytes() == b"changed"
    labels = tmp_path / "out/labels/train/a.txt"
    corrected = labels.read_text().replace("0", "1")
    labels.write_text(corrected)
    with pytest.raises(RunError, match=r"a\.txt exists and is not as this command wrote it"):
        write(tmp_path)
    assert labels.read_text() == corrected


def test_moved_folder_replaces_its_files(tmp_path: Path) -> None:
    proofs = tmp_path / "proofs.json"
    for folder in (tmp_path / "out", tmp_path / "moved" / "out"):
        with Outputs(folder) as outputs:
            outputs.write(proofs, folder.as_posix())
            outputs.write(folder / "guarantee.json", "{}")
        (tmp_path / "moved").mkdir(exist_ok=True)
        folder.rename(tmp_path / "moved" / "out")
    assert proofs.read_text().endswith("moved/out")


def test_relative_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.png").write_bytes(b"picture")
    (tmp_path / "a.png").symlink_to("disk/a.png")
    write(tmp_path)
    image = tmp_path / "out/images/train/a.png"
    assert (image.read_bytes(), image.is_symlink()) == (b"picture", False)


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_copy_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    """Images are copied to another file system, which has no hard links to this one."""

    def no_link(*_: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    copies: list[Path] = []

    def cut_copy(source: Path, path: Path) -> None:
        path.write_bytes(source.read_bytes()[:3])
        copies.append(path)
        raise cause

    (tmp_path / "a.png").write_bytes(b"picture")
    monkeypatch.setattr(os, "link", no_link)
    with monkeypatch.context() as cut:
        cut.setattr(shutil, "copy2", cut_copy)
        with pytest.raises(type(cause)):
            write(tmp_path)
    images = tmp_path / "out/images/train"
    assert list(images.iterdir()) == []
    copies[0].write_bytes(b"pic")  # of a killed process
    for _ in range(2):
        write(tmp_path)
        assert [(path.name, path.read_bytes()) for path in images.iterdir()] == [
            ("a.png", b"picture")
        ]


def test_file_with_a_cut_record_is_kept(tmp_path: Path) -> None:
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
