"""docs/client.md: its tables are those of the package. test_pages.py runs its code and commands."""

import re
from dataclasses import fields

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
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService

GUIDE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
RETRIED = (Overloaded, NotReady, ConnectionFailed)


def table(first_column: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this heading."""
    lines = GUIDE.partition(f"\n| {first_column} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [list(map(str.strip, line.strip("|").split("|"))) for line in lines]


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
