"""`diptych analyze` over a scripted service: shipped and other recipes, tables and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from diptych_client import Analysis, ErrorDetail, ModelFailure, StepAnswer, StepAnswers
from diptych_client.cli.app import app, read_recipe, shipped_recipes
from diptych_client.long_runs import RunError
from diptych_client.results import Task
from diptych_client.transports.rest_messages import analysis_from_json, analysis_json
from tests.support.client_answers import DETECTIONS, SIZE, answer
from tests.support.scripted_services import Script, serving_rest

FAILURE = ModelFailure("second", ErrorDetail("overloaded", "busy", None, "id"))
ANALYSIS = Analysis(
    "id-1",
    SIZE,
    (
        StepAnswers("things", "object_detection", False, (StepAnswer(answer(DETECTIONS)),)),
        StepAnswers(
            "what",
            "captioning",
            True,
            (StepAnswer(answer(DETECTIONS), 0, (1, 2, 3, 4)), StepAnswer(FAILURE, 1)),
        ),
    ),
)
TASKS: list[dict[str, Any]] = [
    {
        "id": name,
        "description": "",
        "result": "text",
        "parameters": {},
        "models": ["first", "second"],
    }
    for name in ("captioning", "open_vocabulary_detection")
]


def run(tmp_path: Path, *words: str) -> tuple[Result, Script]:
    image = tmp_path / "image.png"
    Image.new("RGB", (SIZE.width, SIZE.height)).save(image)
    body = json.dumps(analysis_json(ANALYSIS)).encode()
    script = Script([body], listings={"/v1/tasks": TASKS})
    with serving_rest(script) as url:
        command = ["--url", url, "analyze", str(image), *words]
        return CliRunner().invoke(app, command), script


def test_an_analysis_is_the_same_as_json() -> None:
    document = json.loads(json.dumps(analysis_json(ANALYSIS)))
    assert analysis_from_json(document) == ANALYSIS


def test_the_steps_of_a_recipe_are_sent_and_the_answers_shown(tmp_path: Path) -> None:
    result, script = run(tmp_path, "--recipe", "both-models")
    assert result.exit_code == 0, result.output
    for text in ("things: object_detection", "1 answer\n", "truncated", "object 1", "busy"):
        assert text in result.stdout
    assert b'"models": ["first", "second"]' in script.received[0].body
    printed = run(tmp_path, "--json")[0].stdout
    assert analysis_from_json(json.loads(printed)) == ANALYSIS


def test_labels_are_those_of_the_command(tmp_path: Path) -> None:
    _, script = run(tmp_path, "--recipe", "check-labels", "--label", "cat", "--label", "dog")
    assert b'"labels": ["cat", "dog"]' in script.received[0].body
    result, script = run(tmp_path, "--recipe", "check-labels")
    assert isinstance(result.exception, RunError)
    assert "needs labels" in str(result.exception)
    assert not script.received


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("steps: [{id: a, task: ocr}]")
    _, script = run(tmp_path, "--recipe", str(path))
    assert b'[{"id": "a", "task": "ocr"}]' in script.received[0].body


@pytest.mark.parametrize(
    ("text", "problem"),
    [("steps: {", "is not YAML"), ("[]", "must have steps"), ("steps: [3]", "must have steps")],
)
def test_a_malformed_recipe_is_an_error(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(RunError, match=problem):
        read_recipe(str(path))
    with pytest.raises(RunError, match="the recipes are both-models, check-labels, describe-"):
        read_recipe("none")


def test_shipped_recipes_are_described_and_listed() -> None:
    recipes = shipped_recipes()
    tasks = [Task("captioning", "", "text", {}, ("a",))]
    assert [recipe.name for recipe in recipes] == [
        "both-models",
        "check-labels",
        "describe-everything",
        "read-everything",
    ]
    listed = CliRunner().invoke(app, ["recipes"]).stdout
    for recipe in recipes:
        assert recipe.description in listed
        assert recipe.filled(["cat"], tasks)
