"""`diptych compare` over a scripted service: tables, JSON and the picture."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from diptych_client import Comparison, ErrorDetail, ModelFailure
from diptych_client.cli.app import app
from diptych_client.transports.rest_messages import comparison_json
from tests.support.client_answers import DETECTIONS, SIZE, TEXT_REGIONS, answer
from tests.support.scripted_services import Script, serving_rest

FAILURE = ModelFailure("third", ErrorDetail("unsupported_task", "no", "task", "id"))
COMPARISON = Comparison(
    "id-1",
    "some_task",
    SIZE,
    (answer(DETECTIONS, model="first"), answer(TEXT_REGIONS, model="second"), FAILURE),
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (SIZE.width, SIZE.height)).save(path)
    return path


def compared(image: Path, *words: str | Path) -> Result:
    script = Script([json.dumps(comparison_json(COMPARISON)).encode()])
    with serving_rest(script) as url:
        command = ["--url", url, "compare", image, "--task", "some_task", *words]
        return CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)


def test_a_table_for_each_model_has_labels_scores_and_places(image: Path) -> None:
    lines = compared(image).stdout.splitlines()
    starts = [line.split(",")[0] for line in lines if " ms" in line]
    assert starts == ["first", "second"]
    text = "\n".join(lines)
    for label, score, place in (
        ("star", "0.90", "1.0 2.0 11.0 12.0"),
        ("HI", "0.80", "5.0 5.0 15.0 6.0 14.0 10.0 4.0 9.0"),
    ):
        assert any(label in line and score in line and place in line for line in lines), text
    assert "third: unsupported_task: no" in text


def test_json_is_that_of_the_service(image: Path) -> None:
    printed = compared(image, "--json")
    assert json.loads(printed.stdout) == json.loads(json.dumps(comparison_json(COMPARISON)))


def test_the_answers_are_drawn_side_by_side(image: Path, tmp_path: Path) -> None:
    assert compared(image, "--draw", tmp_path / "drawn.png").exit_code == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width >= 2 * SIZE.width
