"""Many images: answers in their order, a bounded number in flight, errors in place of answers."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from diptych_client import Answer, AsyncClient, Client, DiptychError, InvalidRequest, Overloaded
from tests.support.scripted_services import ANSWER, Refusal, Script, scripted, serving_rest
from tests.support.waiting import wait_until


def numbered(count: int, read: list[int]) -> Iterator[bytes]:
    for number in range(count):
        read.append(number)
        yield f"image {number}".encode()


def test_answers_are_in_order_and_few_images_are_read_ahead() -> None:
    read: list[int] = []
    before = set(threading.enumerate())
    with serving_rest(Script([])) as url, Client(url) as client:
        answers = client.predict_many(numbered(20, read), "ocr", concurrency=4)
        assert next(answers) == ANSWER
        assert len(read) == 4
        assert list(answers) == [ANSWER] * 19
    wait_until(lambda: not set(threading.enumerate()) - before)


def test_an_image_that_fails_has_its_error_in_place_of_an_answer() -> None:
    with scripted("rest", []) as (url, _), Client(url, max_retries=0) as client:
        images: list[str | bytes] = [b"a", "none.png", b"c"]
        first, error, last = client.predict_many(images, "ocr", concurrency=1)
    assert isinstance(error, DiptychError)
    assert error.code == "unreadable_file"
    assert first == last == ANSWER


def test_an_error_of_every_image_ends_the_run() -> None:
    script = Script([Refusal("invalid_request")])
    with serving_rest(script) as url, Client(url) as client:
        answers = client.predict_many([b"a"] * 50, "ocr", concurrency=1)
        with pytest.raises(InvalidRequest):
            list(answers)
    assert len(script.received) == 1


def test_the_async_client_does_the_same() -> None:
    async def run(url: str) -> list[Answer | DiptychError]:
        async with AsyncClient(url, max_retries=0) as client:
            return [each async for each in client.predict_many([b"a"] * 3, "ocr", concurrency=2)]

    with serving_rest(Script([ANSWER, Refusal("overloaded")])) as url:
        found = asyncio.run(run(url))
    assert sorted(type(each).__name__ for each in found) == ["Answer", "Answer", "Overloaded"]
    assert sum(isinstance(each, Overloaded) for each in found) == 1


def test_a_bar_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_rest(Script([])) as url, Client(url) as client:
        list(client.predict_many([b"a"] * 3, "ocr", progress=True))
    printed = capsys.readouterr()
    assert "100%" in printed.err
    assert printed.out == ""
