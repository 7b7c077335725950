"""No text of a server or a dataset controls the terminal."""

import asyncio
import json
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from diptych_client import TextResult
from diptych_client.cli.terminal import answer_view, echo, printable, run_with_progress, tasks_view
from diptych_client.errors import ErrorDetail
from diptych_client.results import Detection, DetectionsResult, ModelFailure, Task
from tests.support.client_answers import answer

ESCAPE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202eevil"
ESCAPED = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u000d\u202eevil"


def printed(view: RenderableType) -> str:
    console = Console(width=500, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_lines_tabs_and_json_stay() -> None:
    assert printable("größer\n\t二") == "größer\n\t二"
    document = json.dumps({"text": ESCAPE}, ensure_ascii=False)
    assert json.loads(printable(document)) == {"text": ESCAPE}
    assert "\x9b" not in printable(document)


@pytest.mark.parametrize(
    "view",
    [
        answer_view(answer(TextResult(ESCAPE))),
        answer_view(answer(DetectionsResult((Detection((0.0, 0.0, 1.0, 1.0), ESCAPE, 0.5),)))),
        answer_view(ModelFailure(ESCAPE, ErrorDetail("internal", "no", None, ""))),
        tasks_view([Task(ESCAPE, "description", "text", {}, ("m",))]),
    ],
)
def test_view_escapes_control_characters(view: RenderableType) -> None:
    assert ESCAPED in printed(view)
    assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e"} & set(printed(view))


def test_line_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    echo(ESCAPE)
    echo(ESCAPE, is_error=True)
    assert capsys.readouterr() == (f"{ESCAPED}\n", f"{ESCAPED}\n")


def test_bar_has_a_name_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(advance: Callable[[], None]) -> None:
        advance()

    run_with_progress(1, run, "[red]\x9b31m")
    assert r"[red]\u009b31m" in capsys.readouterr().err


def test_bar_has_the_rate_in_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    async def run(advance: Callable[[], None]) -> None:
        for _ in range(3):
            await asyncio.sleep(0.01)  # a rate needs two times
            advance()

    run_with_progress(3, run, unit="requests")
    assert " requests/s" in " ".join(capsys.readouterr().err.split())
