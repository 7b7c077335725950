"""Logs that survive a killed process, requests in flight, the file of failures."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from diptych_client.errors import (
    DiptychError,
    ErrorDetail,
    InvalidRequest,
    NotReady,
    Unauthorized,
    UnknownModel,
    UnsupportedTask,
)
from diptych_client.long_runs import AppendLog, FailureLog, RunError, send_all

VALUES: list[dict[str, Any]] = [{"image": "a.png", "n": 1}, {"image": "größer.png", "n": None}, {}]
LINES = "".join(f"{json.dumps(value)}\n" for value in VALUES).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def append(path: Path, *values: dict[str, Any]) -> list[int]:
    with AppendLog.open(path, "image") as log:
        return [log.append(value) for value in values]


def read(path: Path) -> list[dict[str, Any]]:
    with AppendLog.open(path, "image") as log:
        return [value for _, value in log.values()]


def test_values_are_found_by_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "deeper" / "log"
    offsets = append(path, *VALUES[:2])
    offsets += append(path, VALUES[2])
    with AppendLog.open(path, "image") as log:
        assert list(log.values()) == list(zip(offsets, VALUES, strict=True))
        assert [log.value(offset) for offset in reversed(offsets)] == VALUES[::-1]
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("num_lines", [0, len(VALUES)])
@pytest.mark.parametrize("num_written", [0, 1, 12, 100_000])
def test_incomplete_line_is_removed(path: Path, num_lines: int, num_written: int) -> None:
    lines = LINES if num_lines else b""
    path.write_bytes(lines + (b'{"image": "' + b"x" * num_written)[:num_written])
    assert read(path) == VALUES[:num_lines]
    assert path.read_bytes() == lines
    assert append(path, {"image": 2}) == [len(lines)]
    assert read(path) == [*VALUES[:num_lines], {"image": 2}]


@pytest.mark.parametrize("text", ["notes", '{"key": 1}', "\n", '{"images": []}\n'])
def test_file_that_is_not_a_log_is_unchanged(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(RunError, match="log is not a log of this command"):
        append(path, VALUES[0])
    assert path.read_text() == text


def test_line_that_is_not_json_has_its_number(path: Path) -> None:
    path.write_bytes(LINES + b"{\n")
    with pytest.raises(RunError, match="log, line 4: invalid JSON"):
        read(path)


def test_log_is_open_once_at_a_time(path: Path) -> None:
    with AppendLog.open(path, "image") as log:
        with pytest.raises(RunError, match="log is locked by another process"):
            read(path)
        log.append(VALUES[0])
    assert read(path) == VALUES[:1]


def error(kind: Callable[[ErrorDetail], DiptychError], param: str | None = None) -> DiptychError:
    return kind(ErrorDetail("code", "no", param, "id"))


def send(failing: dict[int, DiptychError]) -> tuple[list[int], list[tuple[int, DiptychError]]]:
    """Send numbers, some of which fail; return the answered ones and the failures."""
    answered: list[int] = []
    failures: list[tuple[int, DiptychError]] = []
    in_flight = set[int]()
    numbers_in_flight = set[int]()

    async def send_one(item: int) -> None:
        in_flight.add(item)
        numbers_in_flight.add(len(in_flight))
        for _ in range(item % 3 + 1):
            await asyncio.sleep(0)
        in_flight.remove(item)
        if item in failing:
            raise failing[item]
        answered.append(item)

    asyncio.run(send_all(range(9), send_one, lambda *failure: failures.append(failure), 3))
    assert max(numbers_in_flight) == 3
    return answered, failures


@pytest.mark.parametrize(
    "failure", [error(NotReady), error(InvalidRequest, "image"), error(InvalidRequest, "region")]
)
def test_error_of_one_image_is_reported(failure: DiptychError) -> None:
    answered, failures = send({0: failure, 4: failure})
    assert sorted(answered) == [1, 2, 3, 5, 6, 7, 8]
    assert failures == [(0, failure), (4, failure)]


@pytest.mark.parametrize(
    "failure",
    [
        error(Unauthorized),
        error(UnknownModel),
        error(UnsupportedTask),
        error(InvalidRequest, "labels"),
        error(InvalidRequest),
    ],
)
def test_error_of_every_request_ends_the_run(failure: DiptychError) -> None:
    with pytest.raises(type(failure)) as caught:
        send({4: failure})
    assert caught.value is failure


def test_requests_in_flight_are_cancelled_at_the_end() -> None:
    cancelled: list[int] = []

    async def send_one(item: int) -> None:
        if item == 2:
            raise error(Unauthorized)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(Unauthorized):
        asyncio.run(send_all(range(9), send_one, lambda *_: None, 3))
    assert sorted(cancelled) == [0, 1]


def test_each_failure_is_a_line_at_once(path: Path) -> None:
    path.write_text("of an earlier run\n")
    with FailureLog(path) as log:
        log.append({"image": "a.png", "model": "m"}, error(InvalidRequest, "image"))
        (row,) = [json.loads(line) for line in path.read_text().splitlines()]
        log.append({"image": "c.png"}, error(NotReady))
    assert log.num_failures == 2
    detail = asdict(error(InvalidRequest, "image").detail)
    assert row == {"image": "a.png", "model": "m"} | detail
