"""`diptych predict` and the options of the whole command, over a scripted service."""

import json
import logging
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from diptych_client import Task
from diptych_client.cli import app
from diptych_client.cli.options import TaskOptions, listed
from diptych_client.cli.terminal import tasks_view
from tests.support.client_answers import DETECTIONS, answer
from tests.support.evaluations import write_images
from tests.support.scripted_services import ANSWER, Refusal, Script, serving_rest


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Restore the loggers that a command sets."""
    yield
    logger = logging.getLogger("diptych_client")
    logger.handlers = []
    logger.setLevel(logging.NOTSET)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["diptych", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


def test_each_image_of_a_folder_has_an_answer_or_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_images(tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_text("no image")
    words = ("predict", str(tmp_path / "in"), "--task", "ocr", "--json")
    with serving_rest(Script([])) as url:
        assert run(monkeypatch, "--url", url, *words) == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["image"] for row in rows] == ["a.png", "b.png", "bad.png", "c.png"]
    assert [row["error"]["code"] for row in rows if "error" in row] == ["unreadable_file"]
    assert printed.err.startswith("error: bad.png: ")


def test_answers_of_several_images_are_drawn_into_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_images(tmp_path / "in")
    words = ("--task", "object_detection", "--draw", str(tmp_path / "drawn"))
    with serving_rest(Script([answer(DETECTIONS)] * 3)) as url:
        assert run(monkeypatch, "--url", url, "predict", f"{tmp_path}/in/*.png", *words) == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "a.png",
        "b.png",
        "c.png",
    ]


def test_labels_and_models_are_lists_with_commas() -> None:
    given = TaskOptions("t", labels=["circle,square", '"a, b"'], phrases=["x,y"])
    assert given.parameters().labels == ["circle", "square", "a, b"]
    assert given.parameters().phrases == ["x", "y"]
    assert listed(["a,b", "c"]) == ["a", "b", "c"]


@pytest.mark.parametrize("words", [["--models", "a,b"], ["--model", "a", "--model", "b"]])
def test_models_are_named_together_or_one_by_one(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write_images(tmp_path)
    script = Script([Refusal("invalid_request")])
    with serving_rest(script) as url:
        command = ("compare", str(tmp_path / "a.png"), "--task", "ocr", *words)
        assert run(monkeypatch, "--url", url, *command) == 1
    assert b'["a", "b"]' in script.received[0].body
    assert "invalid_request" in capsys.readouterr().err


def test_a_refused_connection_names_url_attempt_and_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_images(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    options = ("--url", url, "--max-retries", "0")
    status = run(monkeypatch, *options, "predict", str(tmp_path / "a.png"), "--task", "ocr")
    assert status == 1
    error = capsys.readouterr().err
    assert f"POST /v1/predict at {url}: " in error
    assert f"`diptych --url {url} doctor` finds the cause" in error
    assert error.count("\n") == 1


def test_the_doctor_names_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert run(monkeypatch, "--url", f"http://127.0.0.1:{port}", "doctor", "--json") == 1
    connection, client = json.loads(capsys.readouterr().out)
    assert (connection["name"], connection["is_right"]) == ("connection", False)
    assert f"TCP to 127.0.0.1 port {port}: Connection refused" in connection["found"]
    assert "without an API key" in client["found"]


def test_the_doctor_predicts_and_shows_where_the_time_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"id": "ocr", "description": "", "result": "text", "parameters": {}, "models": ["m"]}
    script = Script([ANSWER], listings={"/v1/tasks": [task], "/v1/models": []})
    with serving_rest(script) as url:
        run(monkeypatch, "--url", url, "doctor", "--json")
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["predict"]["is_right"]
    assert "network and client" in found["predict"]["found"]


@pytest.mark.parametrize(("option", "is_noted"), [((), True), (("--quiet",), False)])
def test_quiet_prints_results_and_errors_alone(
    option: tuple[str, ...],
    is_noted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    write_images(tmp_path / "in")
    task = {"id": "t", "description": "", "result": "detections", "parameters": {}, "models": ["m"]}
    script = Script([answer(DETECTIONS)] * 3, listings={"/v1/tasks": [task]})
    words = ("annotate", str(tmp_path / "in"), "--task", "t", "--out", str(tmp_path / "out"))
    with serving_rest(script) as url:
        # options of all commands may follow the command
        assert run(monkeypatch, *words, "--json", f"--url={url}", "--timeout-s", "9", *option) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["labelled"] == 3
    assert ("images/s" in printed.err) == is_noted


def test_the_version_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"diptych {version('diptych-client')}\n"


def test_the_help_offers_completion_and_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert "--install-completion" in shown
    assert "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted." in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_tables_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a_task_with_a_long_name_for_a_table"
    tasks = [Task(long, "", "detections", {"properties": dict.fromkeys("abcdef")}, ("m" * 60,) * 3)]
    Console(width=80).print(tasks_view(tasks))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
