"""`stream: true` over fake runners: events, errors, and clients that disconnect."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import Message

from service.admission.api_keys import ApiKeys
from service.http_app import rest_app
from service.images.fetching import ImageFetcher
from service.images.handle_store import HandleStore, StoreLimits
from service.outbound.program import DirectCalls
from service.outbound.urls import AllowedHost
from tests.service.inference.test_tiled_answers import picture
from tests.support.api_keys import FakeClock, api_keys, hash_of
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    data_url,
    make_core,
    until,
)
from tests.support.image_hosts import ImageHost, Names, listening, response
from tests.support.rest_client import (
    OCR,
    SETTINGS,
    SMALL_PNG,
    Client,
    client,
    error_of,
    fits,
    json_scope,
)
from tests.support.running_service import parse_events
from wire.runner_channel import RunnerUnreachable


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "captioning"},
        {"task": "open_vocabulary_detection", "labels": ["red circle"]},
        {"task": "instance_segmentation", "phrase": "red circle"},
        {"task": "instance_segmentation", "phrase": "red circle", "mask_format": "rle"},
        {"task": "ocr_with_regions"},
    ],
)
def test_answers_match_the_openapi(fields: dict[str, Any]) -> None:
    prediction = client().predict({"image": data_url(PNG), **fields})
    comparison = client().compare({"image": data_url(PNG), **fields})
    assert fits(prediction.json(), "AnswerJson")
    assert fits(comparison.json(), "ComparisonJson")
    assert len(prediction.json()["result"]) == 1


def test_lists_of_tasks_and_models() -> None:
    api = client()
    assert len(api.get("/v1/tasks").json()["data"]) == 11
    assert api.get(f"/v1/models/{PALIGEMMA_ID}").json()["id"] == PALIGEMMA_ID
    for query, flags in [
        ("", [None] * 2),
        ("?catalog=false", [None] * 2),
        ("?catalog=true", [True] * 2),
    ]:
        rows = api.get(f"/v1/models{query}").json()["data"]
        assert [row["id"] for row in rows] == [FLORENCE_ID, PALIGEMMA_ID]
        assert [row.get("served") for row in rows] == flags
    error = error_of(api.get("/v1/models?catalog=yes"))
    assert error["param"] == "catalog"
    assert "catalog must be true or false, not 'yes'" in error["message"]


STREAMED = {**OCR, "stream": True}


def count(status: str) -> float:
    samples = chain.from_iterable(metric.samples for metric in REGISTRY.collect())
    counters = [sample for sample in samples if sample.name == "diptych_requests_total"]
    return sum(sample.value for sample in counters if sample.labels["status"] == status)


def test_stream_of_text_and_answer() -> None:
    fields = {**STREAMED, "task": "object_detection"}
    response = client().predict(fields)
    *tokens, (name, answer) = parse_events(response.text)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-request-id"] == answer["id"]
    assert {token_name for token_name, _ in tokens} == {"token"}
    assert "".join(data["text"] for _, data in tokens) == answer["raw_text"]
    assert name == "result"
    assert fits(answer, "AnswerJson")
    whole = client().predict({**fields, "stream": False}).json()
    assert answer["result"] == whole["result"]
    assert error_of(client().compare(STREAMED))["param"] == "stream"


def test_piece_about_a_view() -> None:
    fields = STREAMED | {"task": "object_detection", "tiles": "1x2", "image": data_url(picture())}
    *tokens, _ = parse_events(client().predict(fields).text)
    assert {name for name, _ in tokens} == {"token"}
    whole, _, right = [data for _, data in tokens]
    assert (whole["view"], right["view"]) == ([0, 0, 800, 400], [356, 0, 800, 400])
    (detection,) = right["result"]["detections"]
    assert detection["box"][0] > right["view"][0]


def test_error_after_the_first_event() -> None:
    broken = FakeDecoder(FLORENCE_ANSWERS, broken=RunnerUnreachable("the decoder died"))
    response = client(make_core(decoders={FLORENCE_ID: broken})).predict(STREAMED)
    (first, _), (name, body) = parse_events(response.text)
    assert (first, name) == ("token", "error")
    assert fits(body, "ErrorJson")
    assert body["error"]["code"] == "not_ready"
    assert body["error"]["request_id"] == response.headers["x-request-id"]


async def leave_after(num_bodies: int, decoder: FakeDecoder) -> None:
    """Request a stream, and disconnect after `num_bodies` parts."""
    received: asyncio.Queue[Message] = asyncio.Queue()
    body = json.dumps({**STREAMED, "task": "object_detection"}).encode()
    received.put_nowait({"type": "http.request", "body": body, "more_body": False})
    num_sent = 0

    async def send(message: Message) -> None:
        nonlocal num_sent
        num_sent += message["type"] == "http.response.body"
        if num_bodies and num_sent == num_bodies:
            received.put_nowait({"type": "http.disconnect"})
            await asyncio.Event().wait()  # a full socket

    app = rest_app(client(make_core(decoders={FLORENCE_ID: decoder})).boundary)
    answering = asyncio.ensure_future(app(json_scope("/v1/predict", body), received.get, send))
    if num_bodies == 0:
        await until(lambda: decoder.specs)
        received.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(answering, SETTINGS.request_timeout_s / 2)


@pytest.mark.parametrize("num_bodies", [0, 1, 2])
async def test_gone_client_of_a_stream(num_bodies: int) -> None:
    before = count("client_gone")
    released = asyncio.Event() if num_bodies == 0 else None
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=released, ended=asyncio.Event())
    await leave_after(num_bodies, decoder)
    # not by its deadline
    await until(lambda: decoder.num_cancelled, SETTINGS.request_timeout_s / 2)
    assert decoder.num_cancelled == 1
    assert count("client_gone") == before + 1


KEY = {"Authorization": "Bearer mine"}


@asynccontextmanager
async def image_host(
    answer: bytes, options: str = ""
) -> AsyncIterator[tuple[httpx.AsyncClient, ImageHost, str]]:
    """Yield a client, an allowed image host, and the URL of its image."""
    async with listening(ImageHost({"/a.png": answer})) as host:
        allowed = [AllowedHost.parse(f"images.test:{host.port}")]
        names = Names({"images.test": ["127.0.0.1"]})
        is_allowed = {"127.0.0.1"}.__contains__
        calls = DirectCalls(is_allowed, names)
        fetcher = ImageFetcher(allowed, SETTINGS.max_body_bytes, calls, timeout_s=5)
        api = client(make_core(fetcher=fetcher), api_keys("mine", options))
        async with api.http(KEY) as http:
            yield http, host, f"http://images.test:{host.port}/a.png"


async def test_stream_keeps_its_place() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS, ended=asyncio.Event())
    api = client(make_core(decoders={FLORENCE_ID: decoder}), api_keys("mine", "max_concurrent=1"))
    async with api.http(KEY) as http:
        streaming = asyncio.create_task(http.post("/v1/predict", json=STREAMED))
        await until(lambda: decoder.specs)
        await asyncio.sleep(0.1)  # its first event is sent
        refused = await http.post("/v1/predict", json={**OCR, "model": PALIGEMMA_ID})
        assert error_of(refused)["code"] == "overloaded"
        streaming.cancel()
        await asyncio.wait([streaming])
        answered = await http.post("/v1/predict", json={**OCR, "model": PALIGEMMA_ID})
    assert answered.status_code == 200


def chat(url: str, text: str, model: str = FLORENCE_ID) -> dict[str, Any]:
    content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def test_urls_need_allowed_hosts() -> None:
    for url in ("http://example.org/a.png", "https://example.org/", "file:///etc/passwd"):
        error = error_of(client().predict({**OCR, "image": url}))
        assert (error["code"], error["param"]) == ("invalid_request", "image")
        assert "image URLs are disabled; send a data: URL, base64 or a file" in error["message"]


async def test_every_interface_takes_a_url() -> None:
    async with image_host(response(PNG)) as (http, host, url):
        fields = {**OCR, "image": url}
        for answer in [
            await http.post("/v1/predict", json=fields),
            await http.post("/v1/predict", files={"task": (None, "ocr"), "image": (None, url)}),
            await http.post("/v1/predict", json={**fields, "stream": True}),
            await http.post("/v1/compare", json=fields),
            await http.post("/v1/chat/completions", json=chat(url, "<OCR>")),
        ]:
            assert answer.status_code == 200, answer.text
            assert "HELLO" in answer.text
        before = host.num_connections
        region = "<REGION_TO_CATEGORY><loc_100><loc_100><loc_900><loc_900>"
        answer = await http.post("/v1/chat/completions", json=chat(url, region))
        assert (answer.status_code, host.num_connections) == (200, before + 1), answer.text


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v1/predict", {"labls": []}, 400),
        ("/v1/predict", {"task": "nothing"}, 400),
        ("/v1/predict", {"model": "florence-9"}, 404),
        ("/v1/compare", {"models": ["florence-9"]}, 404),
    ],
)
async def test_rejected_request_fetches_no_url(
    path: str, fields: dict[str, Any], status: int
) -> None:
    async with image_host(response(SMALL_PNG)) as (http, host, url):
        body = {**OCR, "image": url, **fields}
        assert (await http.post(path, json=body)).status_code == status
        strange = {"Authorization": "Bearer another"}
        assert (await http.post(path, json=body, headers=strange)).status_code == 401
        assert host.num_connections == 0


async def test_fetching_is_a_concurrent_request() -> None:
    async with image_host(b"", "max_concurrent=1") as (http, host, url):
        host.answers["/a.png"] = [b""]  # nothing comes
        reading = asyncio.create_task(http.post("/v1/predict", json={**OCR, "image": url}))
        await until(lambda: host.requests)
        second = error_of(await http.post("/v1/predict", json={**OCR, "model": PALIGEMMA_ID}))
        reading.cancel()
    assert "has reached its limit of 1 concurrent requests" in second["message"]


IMAGE = data_url(SMALL_PNG)
BROKEN = "bm9uZQ=="


def send(path: str, **fields: Any) -> Any:
    return client(make_core(max_pending=2)).send("POST", path, json=fields)


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/predict", "AnswerJson"), ("/v1/compare", "ComparisonJson")]
)
def test_several_images_answer_or_fail(path: str, name: str) -> None:
    images = [IMAGE, BROKEN, *[IMAGE] * 6]  # more than there are places
    document = send(path, images=images, task="ocr").json()
    assert fits(document, "SeveralJson")
    assert ["error" in answer for answer in document["answers"]] == [False, True, *[False] * 6]
    assert all(fits(answer, name) for answer in document["answers"] if "error" not in answer)
    assert len(send(path, images=[BROKEN] * 2, task="ocr").json()["answers"]) == 2


def test_several_files_of_a_form() -> None:
    files = [("images", SMALL_PNG), ("images", b"none"), ("images", SMALL_PNG)]
    response = client().send("POST", "/v1/predict", data={"task": "ocr"}, files=files)
    assert ["error" in answer for answer in response.json()["answers"]] == [False, True, False]


def test_each_image_counts_as_a_request() -> None:
    api = client(keys=api_keys("mine", "requests_per_minute=2 max_concurrent=1"))
    body = {"images": [IMAGE] * 3, "task": "ocr"}
    response = api.send("POST", "/v1/predict", json=body, headers=KEY)
    codes = [answer.get("error", {}).get("code") for answer in response.json()["answers"]]
    assert sorted(map(str, codes)) == ["None", "None", "overloaded"]


DESCRIBED = FLORENCE_ANSWERS | {
    "What does the region <loc_100><loc_200><loc_500><loc_600> describe?": "a circle"
}
STEPS: list[dict[str, Any]] = [
    {"id": "things", "task": "object_detection"},
    {"id": "what", "task": "region_description", "each": "things"},
    {"id": "all", "task": "ocr", "models": [FLORENCE_ID, PALIGEMMA_ID]},
]


def analyze(steps: object = STEPS, **fields: Any) -> Any:
    body = {"image": data_url(PNG), "steps": steps} | fields
    return api().send("POST", "/v1/analyze", json=body)


def api() -> Any:
    return client(make_core(decoders={FLORENCE_ID: FakeDecoder(DESCRIBED)}))


def test_analysis_is_whole_or_streamed() -> None:
    document = analyze().json()
    assert fits(document, "AnalysisJson")
    assert document["image"] == {"width": 640, "height": 480}
    things, texts, everything = document["steps"]
    fields = (things["id"], things["task"], things["truncated"])
    assert fields == ("things", "object_detection", False)
    assert "of" not in things["answers"][0]
    (answer,) = texts["answers"]
    assert (answer["of"], answer["result"]) == (0, {"text": "a circle"})
    assert answer["id"] == document["id"]
    assert [answer["model"] for answer in everything["answers"]] == [FLORENCE_ID, PALIGEMMA_ID]
    response = analyze(stream=True)
    events = parse_events(response.text)
    assert [name for name, _ in events] == ["answer"] * 4 + ["result"]
    assert fits(events[-1][1], "AnalysisJson")
    assert {answer["step"] for _, answer in events[:-1]} == {"things", "what", "all"}


KEPT_S = 100


@pytest.fixture
def images_api(tmp_path: Path) -> Client:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(map(hash_of, ("one", "two"))))
    limits = StoreLimits(10_000, 100, KEPT_S)
    store = HandleStore(tmp_path / "images", limits, FakeClock())
    return client(make_core(handles=store), ApiKeys.load(keys))


def send_to(images_api: Client, method: str, path: str, key: str = "one", **options: Any) -> Any:
    return images_api.send(method, path, headers={"Authorization": f"Bearer {key}"}, **options)


def stored(images_api: Client, key: str = "one") -> Any:
    response = send_to(images_api, "POST", "/v1/images", key, json={"image": data_url(PNG)})
    assert response.status_code == 200
    return response.json()


def test_image_is_stored_and_deleted(images_api: Client) -> None:
    image = stored(images_api)
    assert fits(image, "StoredImageJson")
    assert image == {
        "id": image["id"],
        "expires_at": 1_000 + KEPT_S,
        "bytes": len(PNG),
        "width": 640,
        "height": 480,
    }
    assert send_to(images_api, "POST", "/v1/images", files={"image": PNG}).json() == image
    path = f"/v1/images/{image['id']}"
    assert send_to(images_api, "GET", path).json() == image
    assert send_to(images_api, "DELETE", path).json() == {"id": image["id"], "deleted": True}
    assert error_of(send_to(images_api, "GET", path))["code"] == "image_expired"


def test_every_request_takes_the_id(images_api: Client) -> None:
    image = stored(images_api)["id"]
    fields = {"image": image, "task": "ocr"}
    for path, body in [
        ("/v1/predict", fields),
        ("/v1/compare", fields),
        ("/v1/analyze", {"image": image, "steps": [{"id": "a", "task": "ocr"}]}),
        ("/v1/predict", {"images": [image, data_url(PNG)], "task": "ocr"}),
        ("/v1/chat/completions", chat(image, "<OCR>")),
    ]:
        assert "HELLO" in send_to(images_api, "POST", path, json=body).text
    form = {name: (None, value) for name, value in fields.items()}
    assert "HELLO" in send_to(images_api, "POST", "/v1/predict", files=form).text


def test_id_of_another_key(images_api: Client) -> None:
    image = stored(images_api)["id"]
    body = {"image": image, "task": "ocr"}
    for method, path, options in [
        ("GET", f"/v1/images/{image}", {}),
        ("DELETE", f"/v1/images/{image}", {}),
        ("POST", "/v1/predict", {"json": body}),
    ]:
        error = error_of(send_to(images_api, method, path, "two", **options))
        assert error["code"] == "not_found"
    assert stored(images_api, "two")["id"] != image
    assert send_to(images_api, "POST", "/v1/predict", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"image": "bm9uZQ=="}, "unsupported_image", "image"),
        (OCR, "invalid_request", "task"),
        ({}, "invalid_request", "image"),
    ],
)
def test_only_an_image_is_stored(
    images_api: Client, body: dict[str, str], code: str, param: str
) -> None:
    error = error_of(send_to(images_api, "POST", "/v1/images", json=body))
    assert (error["code"], error["param"]) == (code, param)


def test_no_folder_stores_nothing() -> None:
    images_api = client()
    for method, path in [("POST", ""), ("GET", "/a"), ("DELETE", "/a")]:
        response = images_api.send(method, f"/v1/images{path}", json={"image": data_url(PNG)})
        assert error_of(response)["code"] == "not_found"
    body = {"image": "img_" + "0" * 48, "task": "ocr"}
    assert error_of(images_api.predict(body))["code"] == "not_found"
