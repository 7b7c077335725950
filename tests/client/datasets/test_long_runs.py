"""Logs that survive a killed process, requests in flight, the file of failures."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from diptych_client.datasets.long_runs import AppendLog, FailureLog, RunError, send_all
from diptych_client.errors import DiptychError, new_error

VALUES: list[dict[str, Any]] = [{"image": "a.png", "n": 1}, {"image": "größer.png", "n": None}, {}]
LINES = "".join(f"{json.dumps(value)}\n" for value in VALUES).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "log"


def append(path: Path, *values: dict[str, Any]) -> list[int]:
    with AppendLog.open(path, "image") as log:
        return [log.append(value) for value in values]


def test_values_are_found_by_their_offsets(path: Path) -> None:
    offsets = append(path, *VALUES[:2])
    offsets += append(path, VALUES[2])
    with AppendLog.open(path, "image") as log:
        assert list(log.values()) == list(zip(offsets, VALUES, strict=True))
        assert [log.value(offset) for offset in reversed(offsets)] == VALUES[::-1]
        with pytest.raises(RunError, match="log is locked by another process"):
            append(path)
    assert path.read_bytes() == LINES
    path.write_bytes(LINES + b"{\n")
    with (
        AppendLog.open(path, "image") as log,
        pytest.raises(RunError, match="log, line 4: invalid JSON"),
    ):
        list(log.values())


@pytest.mark.parametrize("lines", [b"", LINES])
@pytest.mark.parametrize("num_written", [0, 1, 12, 100_000])
def test_incomplete_line_is_removed(path: Path, lines: bytes, num_written: int) -> None:
    append(path)
    path.write_bytes(lines + (b'{"image": "' + b"x" * num_written)[:num_written])
    append(path)
    assert path.read_bytes() == lines
    assert append(path, {"image": 2}) == [len(lines)]
    assert path.read_bytes() == lines + b'{"image": 2}\n'


@pytest.mark.parametrize("text", ["notes", '{"key": 1}', "\n", '{"images": []}\n'])
def test_file_that_is_not_a_log_is_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(RunError, match="log is not a log of this command"):
        append(path, VALUES[0])
    assert path.read_text() == text


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


NOT_READY = new_error("not_ready", "no")
BAD_IMAGE = new_error("invalid_request", "no", "image", "id")


@pytest.mark.parametrize("failure", [NOT_READY, BAD_IMAGE, new_error(BAD_IMAGE.code, "", "region")])
def test_error_of_one_image_is_reported(failure: DiptychError) -> None:
    answered, failures = send({0: failure, 4: failure})
    assert sorted(answered) == [1, 2, 3, 5, 6, 7, 8]
    assert failures == [(0, failure), (4, failure)]


@pytest.mark.parametrize("param", [None, "labels"])
@pytest.mark.parametrize(
    "code", ["unauthorized", "unknown_model", "unsupported_task", "invalid_request"]
)
def test_error_of_every_request_ends_the_run(code: str, param: str | None) -> None:
    failure = new_error(code, "no", param)
    with pytest.raises(type(failure)) as caught:
        send({4: failure})
    assert caught.value is failure


def test_requests_in_flight_are_cancelled_at_the_end() -> None:
    cancelled: list[int] = []

    async def send_one(item: int) -> None:
        if item == 2:
            raise new_error("unauthorized", "no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(DiptychError):
        asyncio.run(send_all(range(9), send_one, lambda *_: None, 3))
    assert sorted(cancelled) == [0, 1]


def test_each_failure_is_a_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "failures"
    path.write_text("of an earlier run\n")
    with FailureLog(path) as log:
        log.append({"image": "a.png", "model": "m"}, BAD_IMAGE)
        (row,) = [json.loads(line) for line in path.read_text().splitlines()]
        log.append({"image": "c.png"}, NOT_READY)
    assert log.num_failures == 2
    assert row == {"image": "a.png", "model": "m"} | asdict(BAD_IMAGE.detail)
