"""Calls of both clients as a server receives them: retries, deadlines, streams, stored images."""

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tenacity import Retrying

from diptych_client import (
    Answer,
    AsyncClient,
    Client,
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    ImageExpired,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    StoredImage,
    UnreadableFile,
)
from diptych_client.clients.caller import retrying
from diptych_client.errors import parse_retry_after_s
from diptych_client.json_values import to_json
from tests.support.client_answers import TEXT, answer
from tests.support.running_service import free_port
from tests.support.scripted_services import (
    ANSWER,
    Received,
    Refusal,
    Script,
    Step,
    scripted,
    serving_rest,
)
from tests.support.waiting import wait_until

DETAIL = ErrorDetail("any", "", None, "r")
GRPC_ROUNDING_S = 0.1  # the header of a gRPC timeout has few digits and is rounded up

both_clients = pytest.mark.parametrize("kind", ["sync", "async"])
both_interfaces = pytest.mark.parametrize("interface", ["rest", "grpc"])


def call(kind: str, url: str, method: Callable[[Any], Any], **settings: Any) -> Any:
    """Return the result of a method of a client of this kind; a stream as a list."""
    if kind == "async":
        return asyncio.run(async_call(url, method, settings))
    with Client(url, **settings) as client:
        returned = method(client)
        return list(returned) if hasattr(returned, "__next__") else returned


async def async_call(url: str, method: Callable[[Any], Any], settings: dict[str, Any]) -> Any:
    async with AsyncClient(url, **settings) as client:
        returned = method(client)
        if hasattr(returned, "__anext__"):
            return [event async for event in returned]
        return await returned


def predict(client: Any) -> Any:
    return client.predict(b"image", "ocr")


def stream(client: Any) -> Any:
    return client.stream(b"image", "ocr")


def test_both_clients_have_the_same_methods() -> None:
    """Client is written from AsyncClient by `python client/blocking_client.py`."""
    for name, method in vars(AsyncClient).items():
        if not name.startswith("_"):
            expected = inspect.signature(method).parameters
            assert inspect.signature(getattr(Client, name)).parameters == expected


@pytest.mark.parametrize("url", ["ftp://a:1", "grpc://localhost", "grpc://a:1/path", "http://", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="grpcs://HOST:PORT, got ") as caught:
        Client(url)
    assert caught.value.param == "url"
    for allowed in ("https://example.org/behind/a/proxy", "grpcs://example.org:443/"):
        Client(allowed).close()


def delays_s(error: DiptychError, timeout_s: float, max_retries: int) -> list[float]:
    """Return the delays between the attempts of a call that always fails; nothing sleeps."""
    delays: list[float] = []

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        retrying(Retrying, timeout_s, max_retries).copy(sleep=delays.append)(fail)
    assert caught.value is error
    return delays


@pytest.mark.parametrize(
    ("kinds", "retry_after_s", "delays"),
    [
        ((Overloaded, NotReady, ConnectionFailed), 0.0, [0.0] * 3),
        ((Overloaded, NotReady, ConnectionFailed), 29.0, [29.0] * 3),
        ((Overloaded, NotReady, ConnectionFailed), 100.0, []),  # ends with the deadline
        ((InvalidRequest, InternalError, DeadlineExceeded, DiptychError), 1.0, []),
    ],
)
def test_delay_is_the_retry_after_of_the_service(
    kinds: tuple[type[DiptychError], ...], retry_after_s: float, delays: list[float]
) -> None:
    for kind in kinds:
        assert delays_s(kind(DETAIL, retry_after_s), timeout_s=100.0, max_retries=3) == delays


def test_delay_doubles_up_to_a_limit_and_half_is_random() -> None:
    many = [delays_s(ConnectionFailed(DETAIL), 3600.0, 8) for _ in range(200)]
    limits_s = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    for column, limit_s in zip(zip(*many, strict=True), limits_s, strict=True):
        assert limit_s / 2 <= min(column) < 0.6 * limit_s
        assert 0.9 * limit_s < max(column) <= limit_s


def test_retry_after_is_seconds() -> None:
    assert list(map(parse_retry_after_s, ("0", "120"))) == [0, 120]
    for header in (None, "Fri, 01 May 2026 11:00:00 GMT", "-5", "²"):
        assert parse_retry_after_s(header) is None


@both_clients
@both_interfaces
def test_next_attempt_has_the_remaining_time_and_the_key(interface: str, kind: str) -> None:
    with scripted(interface, [Refusal("overloaded", retry_after_s=1)]) as (url, script):
        assert call(kind, url, predict, timeout_s=9.5, api_key="secret") == ANSWER
    first, second = script.received
    assert second.at_s - first.at_s >= 1
    assert 0 < first.timeout_s <= 9.5 + GRPC_ROUNDING_S
    assert 0 < second.timeout_s <= first.timeout_s - 1 + GRPC_ROUNDING_S
    assert first.request_id == second.request_id
    assert first.key == second.key == "Bearer secret"


@both_clients
@both_interfaces
@pytest.mark.parametrize(
    ("step", "error", "num_sent"),
    [
        (Refusal("invalid_request", 0), InvalidRequest, 1),
        (Refusal("overloaded", 0), Overloaded, 3),
        (Refusal("not_ready", 90), NotReady, 1),  # beyond the deadline
        (None, ConnectionFailed, 3),
    ],
)
def test_last_attempt_raises_its_error(
    interface: str, kind: str, step: Step, error: type[DiptychError], num_sent: int
) -> None:
    with scripted(interface, [step] * 3) as (url, script):
        with pytest.raises(error) as caught:
            call(kind, url, predict, max_retries=2)
        assert len(script.received) == num_sent
    if isinstance(step, Refusal):
        assert (caught.value.message, caught.value.retry_after_s) == ("no", step.retry_after_s)


@both_clients
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_unreachable_or_silent_service_is_an_error(scheme: str, kind: str) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        call(kind, f"{scheme}://127.0.0.1:{free_port()}", predict, max_retries=1)
    assert len(caught.value.request_id) == 32
    start_s = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(DeadlineExceeded):
            call(kind, f"{scheme}://127.0.0.1:{port}", predict, timeout_s=0.3)
    assert 0.25 < time.monotonic() - start_s < 30


TOKENS = ["zwei", " Kreise\n\n", "größer\u2028", "二つ"]


def event(kind: str, data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


ONE = event("token", {"text": "one"})
STREAM = b"".join(event("token", {"text": text}) for text in TOKENS)
STREAM += event("result", to_json(answer(TEXT)))
LATE = {"code": "deadline_exceeded", "message": "late", "param": None, "request_id": "theirs"}


@both_clients
@pytest.mark.parametrize("lost", [b"", ONE[:-1]])
def test_stream_is_retried_before_its_first_piece(kind: str, lost: bytes) -> None:
    whole = b": keep-alive\n\n" + STREAM.replace(b"\n", b"\r\n")  # a proxy wrote it
    with scripted("rest", [lost, whole]) as (url, script):
        assert call(kind, url, stream) == [*TOKENS, answer(TEXT)]
    assert len(script.received) == 2
    assert b'name="stream"\r\n\r\ntrue' in script.received[0].body


@both_clients
@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        (ONE + event("error", {"error": LATE}), DeadlineExceeded, "late"),
        # text was yielded: a second attempt would repeat it
        (STREAM[:-1], ConnectionFailed, "ended before the answer"),
        (b"event: token\ndata: {no json\n\n", InternalError, "cannot parse the response"),
        (event("other", {}), InternalError, "cannot parse the response"),
    ],
)
def test_failed_stream_raises_its_error(
    kind: str, events: bytes, error: type[DiptychError], message: str
) -> None:
    with scripted("rest", [events]) as (url, script):
        with pytest.raises(error, match=message) as caught:
            call(kind, url, stream)
        assert len(script.received) == 1
    assert error is not DeadlineExceeded or caught.value.request_id == "theirs"


@pytest.mark.parametrize("body", [b"[" * 200_000, b"[]", b'{"id": "x"}'], ids=len)
def test_response_of_another_form_is_an_internal_error(body: bytes) -> None:
    message = "cannot parse the response to Predict"
    with scripted("rest", [body]) as (url, _), pytest.raises(InternalError, match=message):
        call("sync", url, predict)


DATA = b"the bytes of an image"
EMPTY = {"id": "a", "task": "ocr", "image": {"width": 1, "height": 1}, "answers": []}
COMPARISON = json.dumps(EMPTY).encode()


def stored(image_id: str) -> bytes:
    return json.dumps({"id": image_id}).encode()


EXPIRED = Refusal("image_expired")


@pytest.mark.parametrize(
    ("steps", "has_data", "last_id"),
    [
        ([stored("img_1"), ANSWER, COMPARISON], [True, False, False], "img_1"),
        (
            [stored("img_1"), ANSWER, EXPIRED, stored("img_2"), COMPARISON],
            [True, False, False, True, True],
            "img_2",
        ),
        (
            [stored("img_1"), Refusal("not_found"), stored("img_2"), ANSWER, COMPARISON],
            [True, False, True, True, False],  # another gateway's
            "img_2",
        ),
        (
            [stored("img_1"), EXPIRED, Refusal("not_found"), ANSWER, COMPARISON],
            [True, False, True, True, True],
            "",
        ),
        ([Refusal("not_found"), ANSWER, COMPARISON], [True, True, True], ""),
    ],
)
@both_clients
def test_stored_image_is_sent_once_or_again(
    kind: str, steps: list[Step], has_data: list[bool], last_id: str
) -> None:
    async def run(url: str) -> None:
        async with AsyncClient(url) as client, client.image(DATA) as image:
            assert await client.predict(image, "ocr") == ANSWER
            await client.compare(image, "ocr")

    with scripted("rest", list(steps)) as (url, script):
        if kind == "async":
            asyncio.run(run(url))
        else:
            with Client(url) as client, client.image(DATA) as image:
                assert client.predict(image, "ocr") == ANSWER
                client.compare(image, "ocr")
    assert [DATA in request.body for request in script.received] == has_data
    assert script.removed == ([f"/v1/images/{last_id}"] if last_id else [])


def test_image_is_not_stored_over_grpc_or_by_an_id() -> None:
    with scripted("grpc", []) as (url, script), Client(url) as client:
        with client.image(DATA) as image:
            assert image == StoredImage(DATA)
            assert client.predict(image, "ocr") == ANSWER
        assert len(script.received) == 1
    with scripted("rest", [Refusal("image_expired")]) as (url, script), Client(url) as client:
        with pytest.raises(ImageExpired):
            client.predict("http://example.org/image.png", "ocr")
        assert len(script.received) == 1


@pytest.mark.parametrize("options", [{"min_score": 10**400}, {"top_p": "x"}, {"seed": 2**70}])
def test_value_that_grpc_cannot_send_is_an_invalid_request(options: dict[str, Any]) -> None:
    with scripted("grpc", []) as (url, _), Client(url) as client, pytest.raises(InvalidRequest):
        client.predict(DATA, "ocr", options=options)


class NumberScript(Script):
    """Answers with the number of the image."""

    def next_step(self, received: Received) -> Step:
        _, _, rest = received.body.partition(b"image ")
        return replace(ANSWER, raw_text=rest.partition(b"\r")[0].decode())


def test_answers_are_in_order_and_few_images_are_read_ahead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    read: list[int] = []

    def images() -> Iterator[bytes]:
        for number in range(20):
            read.append(number)
            yield f"image {number}".encode()

    before = set(threading.enumerate())
    with serving_rest(NumberScript([])) as url, Client(url) as client:
        answers = client.predict_many(images(), "ocr", concurrency=4)
        assert next(answers) == replace(ANSWER, raw_text="0")
        assert len(read) == 4
        texts = [answer.raw_text for answer in answers if isinstance(answer, Answer)]
        assert texts == [str(number) for number in range(1, 20)]
        assert capsys.readouterr().err == ""
        assert len(list(client.predict_many(list(images()), "ocr", progress=True))) == 20
    wait_until(lambda: not set(threading.enumerate()) - before)
    printed = capsys.readouterr()
    assert ("100%" in printed.err, printed.out) == (True, "")


@both_clients
def test_failed_image_has_its_error_unless_every_image_would(kind: str) -> None:
    images = [b"a", "none.png", b"c", *[b"d"] * 50]
    with scripted("rest", []) as (url, script):
        first, error, last = call(kind, url, lambda client: client.predict_many(images[:3], "ocr"))
        assert isinstance(error, UnreadableFile)
        assert first == last == ANSWER
        script.steps.append(Refusal("invalid_request"))
        with pytest.raises(InvalidRequest):
            call(kind, url, lambda client: client.predict_many(images, "ocr", concurrency=1))
    assert len(script.received) == 3
