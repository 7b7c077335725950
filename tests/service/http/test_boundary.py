"""Errors, keys, limits and clients that disconnect, over fake runners."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY
from starlette.routing import Route
from starlette.types import Message

from service.admission.api_keys import ApiKeys
from service.http.boundary import STATUSES, RestBoundary
from service.http_app import rest_app
from service.inference.core import Core
from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.fake_runners import FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ANSWERS,
    PALIGEMMA_ID,
    data_url,
    encoded,
    make_core,
    until,
)
from tests.support.rest_client import (
    MAX_BODY_BYTES,
    OCR,
    SETTINGS,
    SMALL_PNG,
    Client,
    client,
    error_of,
    json_scope,
)
from wire.runner_channel import RunnerUnreachable

CHAT: dict[str, Any] = {
    "model": FLORENCE_ID,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<OCR>"},
                {"type": "image_url", "image_url": {"url": OCR["image"]}},
            ],
        }
    ],
}
SEVERAL = {"task": "ocr", "images": [OCR["image"]] * 2}
NARROW = {**OCR, "task": "region_description", "region": [0, 0, 9, 5]}
WIDE = data_url(encoded(Image.new("1", (2000, 1000))))
GIF = data_url(encoded(Image.new("1", (9, 9)), "GIF"))


@pytest.mark.parametrize(
    ("code", "fields", "param"),
    [
        ("invalid_request", {**OCR, "labls": []}, "labls"),
        ("invalid_request", {**OCR, "max_new_tokens": "5"}, "max_new_tokens"),
        ("invalid_request", {"image": OCR["image"]}, "task"),
        ("invalid_request", {"task": "ocr"}, "image"),
        ("invalid_request", NARROW, "region"),
        ("unknown_model", {**OCR, "model": "florence-3"}, "model"),
        ("image_too_large", {**OCR, "image": WIDE}, "image"),
        ("payload_too_large", {**OCR, "question": "x" * MAX_BODY_BYTES}, None),
        ("unsupported_image", {**OCR, "image": GIF}, "image"),
        ("unsupported_image", {**OCR, "image": "!"}, "image"),
        ("unsupported_task", {**OCR, "task": "object_detection", "model": PALIGEMMA_ID}, "task"),
        ("unsupported_task", {**OCR, "task": "captioning", "language": "fr"}, "language"),
        ("invalid_request", {**OCR, "stream": "yes"}, "stream"),
        ("invalid_request", {**OCR, "stream": True, "temperature": 10**400}, "temperature"),
        ("unsupported_image", {**OCR, "stream": True, "image": "bm8gaW1hZ2U="}, "image"),
        ("invalid_request", {"task": "ocr", "images": []}, "images"),
        ("invalid_request", {"task": "ocr", "images": [OCR["image"]] * 33}, "images"),
        ("invalid_request", {"task": "ocr", "images": OCR["image"]}, "images"),
        ("invalid_request", {"task": "ocr", "images": [3]}, "image"),
        ("invalid_request", {**OCR, "images": [OCR["image"]]}, "images"),
        ("invalid_request", {**SEVERAL, "stream": True}, "stream"),
        ("invalid_request", {**SEVERAL, "labels": ["a"]}, "labels"),
        ("unknown_model", {**SEVERAL, "model": "gpt"}, "model"),
    ],
)
def test_refused_request_has_an_error_body(
    code: str, fields: dict[str, Any], param: str | None
) -> None:
    encoder = FakeEncoder()
    core = make_core(encoders={FLORENCE_ID: encoder, PALIGEMMA_ID: encoder})
    error = error_of(client(core).predict(fields))
    assert (error["code"], error["param"]) == (code, param)
    assert len(error["message"]) < 600
    assert encoder.shapes == []  # refused before any work


def failing(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})


def test_statuses_of_the_contract() -> None:
    statuses = {
        **{"invalid_request": 400, "unauthorized": 401, "unknown_model": 404, "not_found": 404},
        **{"image_expired": 410, "image_too_large": 413, "payload_too_large": 413},
        **{"unsupported_image": 415, "unsupported_task": 422, "overloaded": 429},
        **{"internal": 500, "not_ready": 503, "runner_failed": 503, "deadline_exceeded": 504},
    }
    assert statuses == STATUSES


def test_internal_error_hides_its_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Core, "predict", fail)
    response = client().predict(OCR, X_Request_Id="my-id")
    message = "the service failed; the cause is in its log under the request id"
    assert error_of(response)["message"] == message
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "request my-id failed"


def test_unknown_path_or_method() -> None:
    for method, path in [
        ("GET", "/v1/predict"),
        ("POST", "/v1/models"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/nothing"),
        ("GET", "/nothing"),
    ]:
        response = client().send(method, path)
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
        assert set(response.json()["error"]) == {"code", "message", "param", "request_id"}


def test_not_ready_before_the_start() -> None:
    api = Client(RestBoundary(SETTINGS))
    responses = [api.get("/v1/models"), api.get("/openapi.json"), api.predict(OCR)]
    assert [error_of(response)["code"] for response in responses] == ["not_ready"] * 3
    assert [response.headers["retry-after"] for response in responses] == ["1"] * 3


def num_requests(status: str, api: str = "rest", model: str = "none", task: str = "none") -> float:
    labels = {"api": api, "model": model, "task": task, "status": status}
    return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0


def test_error_of_a_model_is_counted_once() -> None:
    def counts() -> tuple[float, float]:
        of_model = num_requests("not_ready", model=FLORENCE_ID, task="ocr")
        return of_model, num_requests("not_ready")

    of_model, others = counts()
    client(failing(RunnerUnreachable("refused"))).predict(OCR)
    assert counts() == (of_model + 1, others)


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare", "/v1/chat/completions"])
async def test_full_service_reads_no_body(path: str) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    app = rest_app(client(make_core(max_pending=0)).boundary)
    await app(json_scope(path, bytes(100)), receive, send)
    assert sent[0]["status"] == 429


def test_failed_request_leaves_its_place() -> None:
    one_place = client(make_core(max_pending=1))
    for path in ("/v1/predict", "/v1/chat/completions"):
        assert {one_place.send("POST", path, json={}).status_code for _ in range(3)} == {400}
    assert one_place.predict(OCR).status_code == 200


@pytest.mark.parametrize(
    ("request_id", "is_kept"),
    [
        *((valid, True) for valid in ("a", "A-1_b.2", "x" * 64)),
        *((invalid, False) for invalid in ("", "a b", "x" * 65, "a\tb", "<script>")),
    ],
)
def test_valid_request_id_is_kept(request_id: str, is_kept: bool) -> None:
    refused = client().predict({}, X_Request_Id=request_id).headers["x-request-id"]
    answered = client().predict(OCR, X_Request_Id=request_id)
    assert answered.json()["id"] == answered.headers["x-request-id"]
    if is_kept:
        assert refused == answered.json()["id"] == request_id
    else:
        assert re.fullmatch(r"[0-9a-f]{32}", refused)
        assert refused != answered.json()["id"]


@pytest.mark.parametrize(
    "deadline", ["0", "-1", "1.5", "soon", "", "1e3", "\xb2", "00", "9" * 16, "9" * 400, "9" * 5000]
)
def test_invalid_deadline_is_rejected(deadline: str) -> None:
    headers = {"X-Deadline-Ms": deadline.encode("latin-1")}
    error = error_of(client().send("POST", "/v1/predict", json=OCR, headers=headers))
    assert "X-Deadline-Ms must be a whole number of milliseconds" in error["message"]


@pytest.mark.parametrize(("timeout_s", "deadline_ms"), [(30, "100"), (1, "999999999999")])
def test_request_ends_at_its_deadline(timeout_s: int, deadline_ms: str) -> None:
    never = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
    impatient = client(never, values=Settings(request_timeout_s=timeout_s))
    start_s = time.monotonic()
    error = error_of(impatient.predict(OCR, X_Deadline_Ms=deadline_ms))
    assert error["code"] == "deadline_exceeded"
    assert 0.1 <= time.monotonic() - start_s < 20


PUBLIC = {
    "/",
    "/metrics",  # unless `metrics_need_key` is set: test_middleware.py
    *("/docs", "/docs/start.js", "/openapi.json", "/playground", "/playground/{file:path}"),
    # Label Studio sends webhook events without a key; the other path repeats the message in its own
    # URL.
    *(
        f"/integrations/label-studio/{path}"
        for path in ("webhook", "{model}/webhook", "failed/{status}")
    ),
}


@pytest.fixture
def keys() -> ApiKeys:
    return api_keys("my-key")


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic my-key"])
def test_key_is_required(keys: ApiKeys, authorization: str) -> None:
    response = client(keys=keys).predict(OCR, Authorization=authorization)
    assert error_of(response)["code"] == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"


def test_open_routes(keys: ApiKeys) -> None:
    api = client(keys=keys)
    statuses: dict[str, int] = {}
    for route in rest_app(api.boundary).routes:
        if isinstance(route, Route) and "{path" not in route.path:
            for method in set(route.methods or ()) - {"HEAD"}:
                statuses[route.path] = api.send(method, route.path).status_code
    assert {path for path, status in statuses.items() if status != 401} == PUBLIC
    assert len(statuses) > len(PUBLIC) + 10
    assert [statuses[path] for path in ("/docs", "/openapi.json")] == [200, 200]


def test_wrong_keys_get_429(keys: ApiKeys) -> None:
    api = client(keys=keys)
    guesses = [{"Authorization": f"Bearer {guess}"} for guess in range(12)]
    refused = [api.get("/v1/models", headers=guess) for guess in guesses]
    assert [response.status_code for response in refused] == [401] * 10 + [429] * 2
    assert error_of(refused[-1])["code"] == "overloaded"
    assert 1 <= int(refused[-1].headers["retry-after"]) <= 6
    assert api.predict(OCR, Authorization="Bearer my-key").status_code == 200


def test_disconnection_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.suppress(StopIteration):
        app = rest_app(client().boundary)
        asyncio.run(app(json_scope("/v1/predict", bytes(9)), receive, send))
    assert sent[0]["status"] == 499
    assert [record for record in caplog.records if record.exc_info] == []


def num_gone(api: str = "rest") -> float:
    return num_requests("client_gone", api)


async def leave(path: str, fields: object, decoders: dict[str, FakeDecoder]) -> list[Message]:
    """Return the messages that are sent after a disconnection, when every decoder is busy."""
    app = rest_app(client(make_core(decoders=decoders)).boundary)
    body = json.dumps(fields).encode()
    received: asyncio.Queue[Message] = asyncio.Queue()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answering = asyncio.ensure_future(app(json_scope(path, body), received.get, send))
    await until(lambda: all(decoder.specs for decoder in decoders.values()))
    if isinstance(fields, dict) and "steps" in fields:  # the first answer is not held
        await until(lambda: any(b"event: " in message.get("body", b"") for message in sent))
    received.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(answering, 60)
    return sent


@pytest.mark.parametrize(
    ("api", "path", "fields", "model_ids"),
    [
        ("rest", "/v1/predict", OCR, [FLORENCE_ID]),
        ("rest", "/v1/compare", OCR, [FLORENCE_ID, PALIGEMMA_ID]),
        ("openai", "/v1/chat/completions", CHAT, [FLORENCE_ID]),
        ("openai", "/v1/chat/completions", {**CHAT, "stream": True}, [FLORENCE_ID]),
    ],
)
async def test_gone_client_cancels_decoding(
    api: str, path: str, fields: dict[str, Any], model_ids: list[str]
) -> None:
    answers = {FLORENCE_ID: FLORENCE_ANSWERS, PALIGEMMA_ID: PALIGEMMA_ANSWERS}
    decoders: dict[str, FakeDecoder] = {}
    for model_id in model_ids:
        decoders[model_id] = FakeDecoder(answers[model_id], released=asyncio.Event())
    before = num_gone(api)
    sent = await leave(path, fields, decoders)
    assert [decoder.num_cancelled for decoder in decoders.values()] == [1] * len(model_ids)
    assert num_gone(api) == before + 1
    assert "stream" in fields or sent[0]["status"] == 499  # nobody reads it


async def test_gone_client_of_an_analysis() -> None:
    """The server cancels the stream again and again until it has ended."""
    blocked = FakeDecoder(PALIGEMMA_ANSWERS, released=asyncio.Event())
    steps = [{"id": "a", "task": "ocr"}, {"id": "b", "task": "ocr", "model": PALIGEMMA_ID}]
    fields = {"image": OCR["image"], "steps": steps, "stream": True}
    before = num_gone()
    await leave("/v1/analyze", fields, {PALIGEMMA_ID: blocked})
    await until(lambda: not blocked.num_waiting)
    assert blocked.num_cancelled == 1
    assert num_gone() == before + 1


ROOM = 20_000
JSON = {"Content-Type": "application/json"}


CALLS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "json": ("/v1/predict", {"json": OCR}),
    "form": ("/v1/predict", {"data": {"task": "ocr"}, "files": {"image": SMALL_PNG}}),
    "compare": ("/v1/compare", {"json": OCR}),
    "stream": ("/v1/predict", {"json": {**OCR, "stream": True}}),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory_is_given_back(name: str) -> None:
    path, options = CALLS[name]
    core = make_core(max_bytes=ROOM)
    api = client(core)
    for _ in range(1 + ROOM // len(SMALL_PNG)):
        assert api.send("POST", path, **options).status_code == 200
    assert core.places.num_bytes == 0


@pytest.mark.parametrize("name", CALLS)
def test_memory_is_limited(name: str) -> None:
    path, options = CALLS[name]
    core = make_core(max_bytes=100)
    response = client(core).send("POST", path, **options)
    assert response.status_code == 429
    assert "bytes of requests in memory" in response.text
    assert core.places.num_bytes == 0


def test_parsed_values_take_memory() -> None:
    body = '{"image": "", "task": "ocr", "labels": [' + ",".join(["{}"] * 4_000) + "]}"
    api = client(make_core(max_bytes=10 * len(body)))
    response = api.send("POST", "/v1/predict", content=body, headers=JSON)
    assert error_of(response)["code"] == "overloaded"


@pytest.mark.parametrize(
    ("content_type", "num_expected"),
    [("application/json", 6), ("multipart/form-data; boundary=b", 2)],  # a form is held thrice
)
def test_body_is_not_read_beyond_memory(content_type: str, num_expected: int) -> None:
    num_read = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b"x" * 1000

    core = make_core(max_bytes=5_000)
    headers = {"Content-Type": content_type}
    response = client(core).send("POST", "/v1/predict", content=endless(), headers=headers)
    assert error_of(response)["code"] == "overloaded"
    assert num_read == num_expected
