"""Small commands over a scripted service: compare, analyze, doctor; options of all commands."""

import json
import socket
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from diptych_client import (
    Analysis,
    Comparison,
    ErrorDetail,
    ModelFailure,
    StepAnswer,
    StepAnswers,
    Task,
)
from diptych_client.cli.app import read_recipe, shipped_recipes
from diptych_client.cli.options import TaskOptions, listed
from diptych_client.cli.terminal import tasks_view
from diptych_client.long_runs import RunError
from diptych_client.transports.messages import from_json, to_json
from tests.client.cli.conftest import Diptych
from tests.support.client_answers import DETECTIONS, SIZE, TEXT_REGIONS, answer
from tests.support.scripted_services import ANSWER, Refusal, Script

FAILURE = ModelFailure("third", ErrorDetail("unsupported_task", "no", "task", "id"))
BOTH = (answer(DETECTIONS, model="first"), answer(TEXT_REGIONS, model="second"))
COMPARISON = Comparison("id-1", "some_task", SIZE, (*BOTH, FAILURE))
FIRST_STEP = StepAnswers("things", "object_detection", False, (StepAnswer(answer(DETECTIONS)),))
SECOND_STEP = StepAnswers(
    "what", "captioning", True, (StepAnswer(BOTH[0], 0, (1, 2, 3, 4)), StepAnswer(FAILURE, 1))
)
ANALYSIS = Analysis("id-1", SIZE, (FIRST_STEP, SECOND_STEP))
TASK: dict[str, Any] = {"description": "", "result": "text", "parameters": {}}
RECIPES = ["both-models", "check-labels", "describe-everything", "read-everything"]

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (SIZE.width, SIZE.height)).save(path)
    return path


def compare(diptych: Diptych, image: Path, *words: object) -> int:
    script = Script([json.dumps(to_json(COMPARISON)).encode()])
    return diptych(script, "compare", image, "--task", "some_task", *words)


def test_compare_has_a_table_for_each_model(
    diptych: Diptych, image: Path, capsys: Captured
) -> None:
    assert compare(diptych, image) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if " ms" in line] == ["first", "second"]
    rows = [" ".join(line.replace("│", " ").split()) for line in lines]
    assert "star 0.90 1.0 2.0 11.0 12.0" in rows
    assert "HI 0.80 5.0 5.0 15.0 6.0 14.0 10.0 4.0 9.0" in rows
    assert "third: unsupported_task: no" in rows


def test_compare_prints_json_and_draws(diptych: Diptych, image: Path, capsys: Captured) -> None:
    drawn = image.with_name("drawn.png")
    assert compare(diptych, image, "--json", "--draw", drawn) == 0
    expected = json.loads(json.dumps(to_json(COMPARISON)))
    assert json.loads(capsys.readouterr().out) == expected
    with Image.open(drawn) as picture:
        assert picture.width >= 2 * SIZE.width  # side by side


@pytest.mark.parametrize("words", [["--models", "a,b"], ["--model", "a", "--model", "b"]])
def test_models_are_named_together_or_one_by_one(
    diptych: Diptych, image: Path, words: list[str], capsys: Captured
) -> None:
    script = Script([Refusal("invalid_request")])
    assert diptych(script, "compare", image, "--task", "ocr", *words) == 1
    assert b'["a", "b"]' in script.received[0].body
    assert "invalid_request" in capsys.readouterr().err


def analyze(diptych: Diptych, image: Path, *words: object) -> tuple[int, bytes]:
    """Return the exit status and the request."""
    names = ("captioning", "open_vocabulary_detection")
    tasks = [TASK | {"id": name, "models": ["first", "second"]} for name in names]
    body = json.dumps(to_json(ANALYSIS)).encode()
    script = Script([body], listings={"/v1/tasks": tasks})
    status = diptych(script, "analyze", image, *words)
    return status, b"".join(received.body for received in script.received)


def test_recipe_is_sent_and_its_answers_are_shown(
    diptych: Diptych, image: Path, capsys: Captured
) -> None:
    status, body = analyze(diptych, image, "--recipe", "both-models")
    assert status == 0
    assert b'"models": ["first", "second"]' in body
    output = capsys.readouterr().out
    for text in ("things: object_detection", "1 answer\n", "truncated", "object 1", "third: "):
        assert text in output
    analyze(diptych, image, "--json")
    assert from_json(Analysis, json.loads(capsys.readouterr().out)) == ANALYSIS


def test_recipe_takes_labels_or_is_a_file(diptych: Diptych, image: Path, capsys: Captured) -> None:
    words = ("--recipe", "check-labels")
    _, body = analyze(diptych, image, *words, "--label", "cat", "--label", "dog")
    assert b'"labels": ["cat", "dog"]' in body
    assert analyze(diptych, image, *words) == (1, b"")
    assert "needs labels" in capsys.readouterr().err
    path = image.with_name("own.yaml")
    path.write_text("steps: [{id: a, task: ocr}]")
    assert b'[{"id": "a", "task": "ocr"}]' in analyze(diptych, image, "--recipe", path)[1]
    for text in ("steps: {", "[]", "steps: [3]"):
        path.write_text(text)
        with pytest.raises(RunError, match=r"is not YAML|must have steps"):
            read_recipe(str(path))
    with pytest.raises(RunError, match="the recipes are both-models, check-labels, describe-"):
        read_recipe("none")


def test_recipes_are_described_and_listed(diptych: Diptych, capsys: Captured) -> None:
    recipes = shipped_recipes()
    assert [recipe.name for recipe in recipes] == RECIPES
    assert diptych(Script([]), "recipes") == 0
    output = capsys.readouterr().out
    tasks = [Task("captioning", "", "text", {}, ("a",))]
    for recipe in recipes:
        assert recipe.description in output
        assert recipe.filled(["cat"], tasks)


def test_lists_have_commas() -> None:
    options = TaskOptions("t", labels=["circle,square", '"a, b"'], phrases=["x,y"])
    assert options.parameters().labels == ["circle", "square", "a, b"]
    assert options.parameters().phrases == ["x", "y"]
    assert listed(["a,b", "c"]) == ["a", "b", "c"]
    assert replace(options, tiles="2x3", min_score=0.5).answer_options().tiles == "2x3"


def free_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_refused_connection_names_the_doctor(
    diptych: Diptych, image: Path, capsys: Captured
) -> None:
    url = free_url()
    # options of all commands may follow the command, where the last one counts
    words = ("predict", image, "--task", "ocr", f"--url={url}", "--max-retries", "0")
    assert diptych(Script([]), *words) == 1
    error = capsys.readouterr().err
    assert f"POST /v1/predict at {url}: " in error
    assert f"`diptych --url {url} doctor` finds the cause" in error
    assert error.count("\n") == 1


def test_doctor_names_what_fails(diptych: Diptych, capsys: Captured) -> None:
    url = free_url()
    assert diptych(Script([]), "doctor", "--json", "--url", url) == 1
    connection, client = json.loads(capsys.readouterr().out)
    assert (connection["name"], connection["is_right"]) == ("connection", False)
    assert "Connection refused" in connection["found"]
    assert "without an API key" in client["found"]
    assert diptych(Script([]), "doctor", "--url", url) == 1
    assert "failed" in capsys.readouterr().out


def test_doctor_predicts_and_shows_times(diptych: Diptych, capsys: Captured) -> None:
    task = TASK | {"id": "ocr", "models": ["m"]}
    script = Script([ANSWER], listings={"/v1/tasks": [task], "/v1/models": []})
    diptych(script, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["predict"]["is_right"]
    assert "network and client" in checks["predict"]["found"]


def test_version_and_help_are_printed(
    diptych: Diptych, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert diptych(Script([]), "--version") == 0
    assert capsys.readouterr().out == f"diptych {version('diptych-client')}\n"
    monkeypatch.setenv("COLUMNS", "80")
    assert diptych(Script([]), "--help") == 0
    output = capsys.readouterr().out
    assert "--install-completion" in output
    assert "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted." in output
    name = "a_task_with_a_long_name_for_a_table"
    tasks = [Task(name, "", "detections", {"properties": dict.fromkeys("abcdef")}, ("m" * 60,) * 3)]
    Console(width=80).print(tasks_view(tasks))
    lines = [*output.splitlines(), *capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
