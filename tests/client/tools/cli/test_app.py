"""Small commands over a scripted service, and that no text of a server controls the terminal."""

import json
import socket
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from diptych_client import (
    Analysis,
    Comparison,
    Detection,
    DetectionsResult,
    ErrorDetail,
    ModelFailure,
    StepAnswer,
    StepAnswers,
    Task,
    TextResult,
)
from diptych_client.datasets.inputs import Problems
from diptych_client.datasets.long_runs import Outputs, RunError
from diptych_client.json_values import from_json, to_json
from diptych_client.tools.cli.app import read_recipe, shipped_recipes
from diptych_client.tools.cli.terminal import (
    answer_view,
    echo,
    note_problems,
    printable,
    run_with_progress,
    tasks_view,
)
from tests.client.tools.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, SIZE, TEXT_REGIONS, answer
from tests.support.scripted_services import Refusal, Script

FAILURE = ModelFailure("third", ErrorDetail("unsupported_task", "no", "task", "id"))
BOTH = (answer(DETECTIONS, model="first"), answer(TEXT_REGIONS, model="second"))
COMPARISON = to_json(Comparison("id-1", "some_task", SIZE, (*BOTH, FAILURE)))
FIRST_STEP = StepAnswers("things", "object_detection", False, (StepAnswer(answer(DETECTIONS)),))
SECOND_STEP = StepAnswers(
    "what", "captioning", True, (StepAnswer(BOTH[0], 0, (1, 2, 3, 4)), StepAnswer(FAILURE, 1))
)
ANALYSIS = Analysis("id-1", SIZE, (FIRST_STEP, SECOND_STEP))
RECIPES = ["both-models", "check-labels", "describe-everything", "read-everything"]


@pytest.fixture
def image(folder: Path) -> Path:
    return folder / "a.png"


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
    assert diptych(Script([BOTH[0]] * 3), "predict", folder, "--task", "t") == 1
    assert "\nc.png\n" in capsys.readouterr().out  # a title for each


def test_one_image_has_its_answer_alone(diptych: Diptych, image: Path, capsys: Captured) -> None:
    words = ("predict", image, "--task", "t")
    assert diptych(Script([BOTH[0]]), *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "first"
    assert diptych(Script([BOTH[0]]), *words) == 0
    assert "a.png" not in capsys.readouterr().out
    for other in ("b.png", "c.png"):
        image.with_name(other).unlink()
    words_of_folder = ("predict", image.parent, "--task", "t", "--json")
    assert diptych(Script([BOTH[0]]), *words_of_folder) == 0
    assert json.loads(capsys.readouterr().out)["image"] == "a.png"
    assert diptych(Script([Refusal("invalid_request")]), *words) == 1
    assert capsys.readouterr().err.startswith("error: invalid_request")


@pytest.mark.parametrize("name", ["-", "a.txt"])
@pytest.mark.parametrize("command", ["predict", "compare"])
def test_image_has_any_name(
    diptych: Diptych, image: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    file = image.rename(image.with_name("a.txt"))
    with file.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        body = json.dumps(COMPARISON).encode()
        script = Script([BOTH[0] if command == "predict" else body])
        words = (command, name if name == "-" else file)
        assert diptych(script, *words, "--task", "t") == 0
    assert file.read_bytes() in script.received[0].body


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "t", "--draw", "x"), "--draw x: the name must end as that of a picture"),
        (("--task", "t", "--draw", "x.xyz"), "--draw x.xyz: the name must end"),
        ((), "Invalid value for --task: missing; offered are first_task"),
        (("--task", "t"), "no; give the key by --api-key-file FILE"),
    ],
)
def test_error_says_what_to_give(
    diptych: Diptych, image: Path, capsys: Captured, words: Sequence[str], message: str
) -> None:
    for command in ("predict", "compare"):
        script = Script([Refusal("unauthorized")], listings=listings("first_task", "text", "m"))
        assert diptych(script, command, image, *words) == (1 if words else 2)
        text = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in text


def test_comparison_is_printed_and_drawn(diptych: Diptych, image: Path, capsys: Captured) -> None:
    drawn = image.with_name("drawn.png")
    words = ("compare", image, "--task", "some_task")
    script = Script([json.dumps(COMPARISON).encode()] * 2)
    assert diptych(script, *words, "--models", "a,b", "--draw", drawn) == 0
    assert b'["a", "b"]' in script.received[0].body
    with Image.open(drawn) as picture:
        assert picture.width >= 2 * 100  # side by side
    lines = capsys.readouterr().out.splitlines()
    rows = [" ".join(line.replace("│", " ").split()) for line in lines]
    assert "star 0.90 1.0 2.0 11.0 12.0" in rows
    assert "HI 0.80 5.0 5.0 15.0 6.0 14.0 10.0 4.0 9.0" in rows
    assert "third: unsupported_task: no" in rows
    assert diptych(script, *words, "--json", "--model", "a", "--model", "b") == 0
    assert b'["a", "b"]' in script.received[1].body
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(COMPARISON))


def analyze(diptych: Diptych, image: Path, *words: object) -> tuple[int, bytes]:
    """Return the exit status and the request."""
    body = json.dumps(to_json(ANALYSIS)).encode()
    script = Script([body], listings=listings("captioning", "text", "first", "second"))
    status = diptych(script, "analyze", image, *words)
    return status, b"".join(received.body for received in script.received)


def test_recipe_is_sent_and_its_answers_printed(
    diptych: Diptych, image: Path, capsys: Captured
) -> None:
    status, body = analyze(diptych, image, "--recipe", "both-models")
    assert status == 0
    assert b'"models": ["first", "second"]' in body
    output = capsys.readouterr().out
    for text in ("things: object_detection", "answers: 1\n", "truncated", "object 0", "third: "):
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
    for text in ("[]", "steps: [3]"):
        path.write_text(text)
        with pytest.raises(RunError, match="must have steps"):
            read_recipe(str(path))
    for name in ("none", image):
        assert analyze(diptych, image, "--recipe", name) == (1, b"")


def test_recipes_are_described(diptych: Diptych, capsys: Captured) -> None:
    assert diptych(Script([]), "recipes") == 0
    output = capsys.readouterr().out
    recipes = shipped_recipes()
    assert [recipe.name for recipe in recipes] == RECIPES
    for recipe in recipes:
        assert f"{recipe.name}: {recipe.description}" in output


def test_options_are_fields_of_the_request(diptych: Diptych, image: Path) -> None:
    script = Script([BOTH[0]])
    words = ("--labels", "circle,square", "--labels", '"a, b"', "--region", 1, 2, 3, 4)
    key = image.with_name("key")
    key.write_text("secret\n")
    others = ("--unconstrained", "--tiles", "2x3", "--min-score", 0, "--api-key-file", key)
    assert diptych(script, "predict", image, "--task", "t", *words, *others) == 0
    (request,) = script.received
    for value in ('["circle", "square", "a, b"]', "[1.0, 2.0, 3.0, 4.0]", "false", "2x3", "0.0"):
        assert f"\r\n\r\n{value}\r\n".encode() in request.body
    assert b"mask_format" not in request.body
    assert request.key == "Bearer secret"


def test_connection_error_names_the_url(diptych: Diptych, image: Path, capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    # options of all commands may follow the command, where the last one counts
    words = ("predict", image, "--task", "ocr", f"--url={url}", "-q", "--max-retries", "0")
    assert diptych(Script([]), *words) == 1
    error = capsys.readouterr().err
    assert f"POST /v1/predict at {url}: " in error
    assert error.count("\n") == 1


def test_version_and_help_are_printed(diptych: Diptych, capsys: Captured) -> None:
    assert diptych(Script([]), "--version") == 0
    assert capsys.readouterr().out == f"diptych {version('diptych-client')}\n"
    assert diptych(Script([]), "--help") == 0
    assert "Exit status: 0 done, 1 failed, 2 wrong usage" in capsys.readouterr().out
    assert diptych(Script([]), "annotate", "--help") == 0
    options = capsys.readouterr().out
    assert "<path>" in options
    assert "<bool>" not in options  # of flags
    for panel in ("Task parameters", "Objects", "Tiles of large images", "Guarantee"):
        assert f"─ {panel} ─" in options
    assert options.index("─ Task parameters ─") < options.index("--labels")


def test_problems_are_noted_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problems = Problems()
    for number in range(30):
        problems.add("x", number, "left out")
    path = tmp_path / "problems.txt"
    with Outputs(tmp_path) as outputs:
        note_problems(problems, outputs)
        assert len(caplog.messages) == 21
        assert caplog.messages[-1] == f"30 x left out; all are in {path}"
        assert path.read_text().splitlines() == problems.lines
        note_problems(Problems(), outputs)  # of the next run
    assert path.read_text() == ""


ESCAPE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202eevil"
ESCAPED = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u000d\u202eevil"


def test_views_escape_control_characters() -> None:
    console = Console(width=500, color_system=None)
    with console.capture() as captured:
        console.print(answer_view(answer(TextResult(ESCAPE))))
        boxes = (Detection((0, 0, 1, 1), ESCAPE, 0.5),)
        console.print(answer_view(answer(DetectionsResult(boxes))))
        console.print(answer_view(ModelFailure(ESCAPE, FAILURE.error)))
        console.print(tasks_view([Task(ESCAPE, "description", "text", {}, ("m",))]))
    assert captured.get().count(ESCAPED) == 4
    assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e"} & set(captured.get())


def test_text_and_bar_escape_control_characters(capsys: Captured) -> None:
    echo(ESCAPE)
    echo(ESCAPE, is_error=True)
    assert capsys.readouterr() == (f"{ESCAPED}\n", f"{ESCAPED}\n")
    assert printable("größer\n\t二") == "größer\n\t二"
    document = json.dumps({"text": ESCAPE}, ensure_ascii=False)
    assert json.loads(printable(document)) == {"text": ESCAPE}

    async def run(advance: Callable[[], None]) -> None:
        for _ in range(3):
            advance()

    run_with_progress(3, run, "[red]\x9b31m")
    bar = " ".join(capsys.readouterr().err.split())
    assert r"[red]\u009b31m" in bar
    assert "100%" in bar
