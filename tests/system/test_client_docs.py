"""docs/client.md: its code prints what it shows, its commands succeed, its tables are those of the
package.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import diptych_client
from diptych_client import (
    AnswerOptions,
    Client,
    ConnectionFailed,
    DiptychError,
    NotReady,
    Overloaded,
    TaskParameters,
)
from diptych_client.errors import ErrorDetail, error_from
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService

GUIDE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", GUIDE, re.DOTALL)
RETRIED = (Overloaded, NotReady, ConnectionFailed)


def table(first_column: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this heading."""
    lines = GUIDE.partition(f"\n| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [list(map(str.strip, line.strip("|").split("|"))) for line in lines]


def adapted(text: str, service: RunningService, tmp_path: Path) -> str:
    """Return code or a command with the test's service and folder instead of the defaults."""
    text = text.replace("localhost:3001", service.grpc_address).replace("/tmp/", f"{tmp_path}/")
    text = re.sub(r"\bClient\((?=\)|\w+=)", f'Client("{service.url}", ', text)
    return text.replace("http://localhost:3000", service.url)


def without_times(text: str, tmp_path: Path) -> str:
    return re.sub(
        r"[\d.]+ (ms|s|images/s)\b",
        r"… \1",
        text.replace(f"{tmp_path}/", "/tmp/").replace("\n", ""),
    )


@pytest.mark.parametrize(("code", "shown"), CODE)
def test_the_code_prints_what_the_guide_shows(
    service: RunningService, tmp_path: Path, code: str, shown: str
) -> None:
    quiet = "-Wignore:OpenCV"  # supervision warns at import that OpenCV is missing
    command = [sys.executable, quiet, "-c", adapted(code, service, tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (shown, "")


@pytest.mark.parametrize(("commands", "shown"), COMMANDS)
def test_a_command_succeeds_and_prints_what_the_guide_shows(
    service: RunningService, tmp_path: Path, commands: str, shown: str
) -> None:
    printed = ""
    for line in commands.splitlines():
        program, *words = shlex.split(adapted(line, service, tmp_path))
        assert program == "diptych"
        command = [DIPTYCH, *([] if "--url" in words else ["--url", service.url]), *words]
        printed += subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    assert printed
    if shown:
        assert without_times(printed, tmp_path) == without_times(shown, tmp_path)


def test_every_block_is_run() -> None:
    assert len(CODE) == GUIDE.count("```python")
    assert len(COMMANDS) == GUIDE.count("```sh")
    assert min(len(CODE), len(COMMANDS)) > 2


def test_the_result_types_are_those_of_the_tasks(service: RunningService) -> None:
    with Client(service.url) as client:
        tasks = client.tasks()
    rows = table("type")
    assert {row[0].strip("`") for row in rows} == {
        name for name in diptych_client.__all__ if name.endswith("Result")
    }
    for name, attribute, shown in rows:
        (field,) = fields(getattr(diptych_client, name.strip("`")))
        assert attribute == f"`{field.name}`"
        assert set(re.findall(r"`(\w+)`", shown)) == {
            task.id for task in tasks if task.result == field.name
        }


def test_every_parameter_and_option_is_named() -> None:
    for field in (*fields(TaskParameters), *fields(AnswerOptions)):
        assert f"`{field.name}`" in GUIDE


def test_the_errors_are_those_of_the_package() -> None:
    rows = {
        name.strip("`"): (code.strip("`"), retried) for name, code, _, retried in table("class")
    }
    assert set(rows) == {kind.__name__ for kind in DiptychError.__subclasses__()}
    for name, (code, retried) in rows.items():
        error = error_from(ErrorDetail(code, "", None, ""))
        assert type(error).__name__ == name
        assert retried == ("yes" if isinstance(error, RETRIED) else "no")
