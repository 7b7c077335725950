"""`diptych predict` over a scripted service: an answer for each image."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.client.cli.conftest import Diptych
from tests.support.client_answers import DETECTIONS, answer
from tests.support.evaluations import write_images
from tests.support.scripted_services import Refusal, Script

FOUND = answer(DETECTIONS)
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "in")
    return tmp_path / "in"


def test_each_image_has_an_answer_or_an_error(
    diptych: Diptych, folder: Path, capsys: Captured
) -> None:
    (folder / "bad.png").write_text("no image")
    assert diptych(Script([]), "predict", folder, "--task", "ocr", "--json") == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "b.png", "bad.png", "c.png"]
    assert [row["error"]["code"] for row in rows if "error" in row] == ["unreadable_file"]
    assert printed.err.startswith("error: bad.png: ")
    assert diptych(Script([FOUND] * 3), "predict", folder, "--task", "t") == 1
    assert "\nc.png\n" in capsys.readouterr().out  # a title for each


def test_one_image_has_its_answer_alone(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    image = folder / "a.png"
    assert diptych(Script([FOUND]), "predict", image, "--task", "t", "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "some-model"
    assert diptych(Script([FOUND]), "predict", image, "--task", "t") == 0
    assert "a.png" not in capsys.readouterr().out
    assert diptych(Script([Refusal("invalid_request")]), "predict", image, "--task", "t") == 1
    assert capsys.readouterr().err.startswith("error: invalid_request")


def test_answers_are_drawn_into_a_folder(diptych: Diptych, folder: Path) -> None:
    drawn = folder.with_name("drawn")
    words = ("--task", "object_detection", "--draw", drawn)
    assert diptych(Script([FOUND] * 3), "predict", f"{folder}/*.png", *words) == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["a.png", "b.png", "c.png"]
    with Image.open(drawn / "a.png") as picture, Image.open(folder / "a.png") as original:
        assert picture.tobytes() != original.tobytes()
