"""Many requests: how many are in flight, which errors end the run, the file of failures."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

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
from diptych_client.long_runs import FailureLog, send_all

Failures = list[tuple[int, Exception]]


def error(kind: Callable[[ErrorDetail], DiptychError], param: str | None = None) -> DiptychError:
    return kind(ErrorDetail("code", "no", param, "id"))


def sent_with(failing: dict[int, Exception], num_items: int = 9) -> tuple[list[int], Failures]:
    """Send numbers, some of which fail; return the answered ones and the failures."""
    answered: list[int] = []
    failures: Failures = []

    async def send(item: int) -> None:
        await asyncio.sleep(0)
        if item in failing:
            raise failing[item]
        answered.append(item)

    asyncio.run(
        send_all(range(num_items), send, lambda item, error: failures.append((item, error)), 3)
    )
    return answered, failures


def test_as_many_requests_are_in_flight_as_allowed_and_each_item_is_sent_once() -> None:
    taken: list[int] = []
    sent: list[int] = []
    most_in_flight = 0

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    async def send(item: int) -> None:
        nonlocal most_in_flight
        most_in_flight = max(most_in_flight, len(taken) - len(sent))
        for _ in range(item % 3 + 1):
            await asyncio.sleep(0)
        sent.append(item)

    asyncio.run(send_all(items(), send, lambda *_: None, 3))
    assert sorted(sent) == list(range(20))
    assert most_in_flight == 3


@pytest.mark.parametrize(
    "failure",
    [
        error(NotReady),
        error(InvalidRequest, "image"),
        error(InvalidRequest, "region"),
        FileNotFoundError("gone"),
    ],
)
def test_an_error_of_one_image_is_reported_and_the_others_are_sent(failure: Exception) -> None:
    answered, failures = sent_with({0: failure, 4: failure})
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
def test_an_error_of_every_request_ends_the_run(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught:
        sent_with({4: failure}, 1000)
    assert caught.value is failure


def test_requests_in_flight_are_cancelled_when_the_run_ends() -> None:
    cancelled: list[int] = []

    async def send(item: int) -> None:
        if item == 2:
            raise error(Unauthorized)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    with pytest.raises(Unauthorized):
        asyncio.run(send_all(range(9), send, lambda *_: None, 3))
    assert sorted(cancelled) == [0, 1]


def test_each_failure_is_a_line_at_once_of_this_run(tmp_path: Path) -> None:
    path = tmp_path / "failures.jsonl"
    path.write_text("of an earlier run\n")
    with FailureLog(path) as log:
        assert log.num_failures == 0
        log.append({"image": "a.png"}, error(InvalidRequest, "image"))
        log.append({"image": "b.png", "model": "m"}, FileNotFoundError("gone"))
        assert log.num_failures == 2
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"image": "a.png", "code": "code", "message": "no", "param": "image", "request_id": "id"},
        {"image": "b.png", "model": "m", "code": "unreadable_file", "message": "gone"},
    ]
