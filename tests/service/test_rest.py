import asyncio
import bisect
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image
from prometheus_client import REGISTRY

from service.api_keys import ApiKeys
from service.core import Comparison, Core
from service.errors import ErrorCode
from service.openapi import openapi_document
from service.prediction import Answer
from service.rest import STATUSES, RestApi
from service.settings import Settings
from tests.support.fake_runners import FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    data_url,
    encoded,
    make_core,
    served_models,
)

MAX_BODY_BYTES = 50_000
SETTINGS = Settings(max_body_bytes=MAX_BODY_BYTES, request_timeout_s=5)
SMALL_PNG = encoded(Image.new("RGB", (8, 8), (200, 30, 30)))
OCR = {"image": data_url(SMALL_PNG), "task": "ocr"}
COMPONENTS = openapi_document(served_models())["components"]


@dataclass(frozen=True, slots=True)
class Client:
    """A client of an API whose exceptions, if any escape, end the test."""

    api: RestApi

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.api.app())
            async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.send("GET", path, **options)

    def predict(self, fields: Mapping[str, object], **headers: str) -> httpx.Response:
        return self.send("POST", "/v1/predict", json=fields, headers=as_headers(headers))

    def compare(self, fields: Mapping[str, object], **headers: str) -> httpx.Response:
        return self.send("POST", "/v1/compare", json=fields, headers=as_headers(headers))


def as_headers(names: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in names.items()}


def client(core: Core | None = None, keys: ApiKeys | None = None, values: Settings = SETTINGS) -> Client:
    api = RestApi(values)
    api.start(core or make_core(), keys or ApiKeys(None))
    return Client(api)


def fits(document: object, name: str) -> bool:
    """Say whether a body is what /openapi.json says."""
    Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": COMPONENTS}).validate(document)
    return True


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a body that is the contract's, checked against its status and headers."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert fits(document, "ErrorJson")
    error: dict[str, Any] = document["error"]
    assert response.status_code == STATUSES[error["code"]]
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return error


# Answers


def test_prediction_from_json_is_the_body_of_the_contract() -> None:
    response = client().predict({"image": data_url(PNG), "task": "object_detection"}, X_Request_Id="my-id")
    body = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert fits(body, "AnswerJson")
    assert (body["id"], body["model"], body["task"]) == ("my-id", FLORENCE_ID, "object_detection")
    (detection,) = body["result"]["detections"]
    assert detection["box"] == pytest.approx([64.32, 96.24, 320.32, 288.24])
    assert body["raw_text"] == "red circle<loc_100><loc_200><loc_500><loc_600>"


def test_prediction_from_a_form_is_that_from_json() -> None:
    fields = {"task": "open_vocabulary_detection", "labels": ["red circle", "blue square"], "max_new_tokens": 50}
    form = client().send("POST", "/v1/predict", files={"image": ("a.png", PNG)}, data=fields)
    from_json = client().predict({"image": data_url(PNG), **fields})
    assert form.status_code == from_json.status_code == 200
    assert form.json()["result"] == from_json.json()["result"]


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "captioning"},
        {"task": "open_vocabulary_detection", "labels": ["red circle"]},
        {"task": "instance_segmentation", "phrase": "red circle"},
        {"task": "instance_segmentation", "phrase": "red circle", "mask_format": "rle"},
        {"task": "ocr_with_regions"},
        {"task": "visual_question_answering", "question": "what is it?"},
    ],
)
def test_answers_of_every_kind_fit_the_document(fields: dict[str, Any]) -> None:
    prediction = client().predict({"image": data_url(PNG), **fields})
    comparison = client().compare({"image": data_url(PNG), **fields})
    assert (prediction.status_code, comparison.status_code) == (200, 200)
    assert fits(prediction.json(), "AnswerJson")
    assert fits(comparison.json(), "ComparisonJson")
    assert len(prediction.json()["result"]) == 1


def test_comparison_has_answers_and_errors_in_the_order_of_the_catalog() -> None:
    fields = {"image": data_url(PNG), "task": "object_detection", "models": [PALIGEMMA_ID, FLORENCE_ID]}
    response = client().compare(fields, X_Request_Id="my-id")
    body = response.json()
    assert response.status_code == 200
    assert fits(body, "ComparisonJson")
    assert (body["id"], body["task"], body["image"]) == ("my-id", "object_detection", {"width": 640, "height": 480})
    florence, paligemma = body["answers"]
    assert (florence["id"], florence["model"]) == ("my-id", FLORENCE_ID)
    assert set(paligemma) == {"model", "error"}
    assert paligemma["model"] == PALIGEMMA_ID
    assert {name: paligemma["error"][name] for name in ("code", "param", "request_id")} == {
        "code": "unsupported_task",
        "param": "task",
        "request_id": "my-id",
    }


def test_listings_and_document_are_served() -> None:
    api = client()
    assert [model["id"] for model in api.get("/v1/models").json()["data"]] == [FLORENCE_ID, PALIGEMMA_ID]
    assert len(api.get("/v1/tasks").json()["data"]) == 11
    assert api.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_docs_page_loads_nothing_from_elsewhere() -> None:
    response = client().get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert re.findall(r"https?://|//[a-z]+\.", response.text) == []


# Errors


@dataclass(frozen=True, slots=True)
class Refused:
    code: ErrorCode
    fields: dict[str, Any]
    param: str | None = None


REFUSED = [
    Refused("invalid_request", {**OCR, "labls": []}, "labls"),
    Refused("invalid_request", {**OCR, "max_new_tokens": "5"}, "max_new_tokens"),
    Refused("invalid_request", {"image": OCR["image"]}, "task"),
    Refused("invalid_request", {"task": "ocr"}, "image"),
    Refused("invalid_request", {**OCR, "image": "https://example.org/a.png"}, "image"),
    Refused("invalid_request", {**OCR, "task": "region_description", "region": [0, 0, 9, 5]}, "region"),
    Refused("unknown_model", {**OCR, "model": "florence-3"}, "model"),
    Refused("image_too_large", {**OCR, "image": data_url(encoded(Image.new("1", (2000, 1000))))}, "image"),
    Refused("payload_too_large", {**OCR, "question": "x" * MAX_BODY_BYTES}),
    Refused("unsupported_image", {**OCR, "image": data_url(encoded(Image.new("1", (9, 9)), "GIF"))}, "image"),
    Refused("unsupported_image", {**OCR, "image": "!"}, "image"),
    Refused("unsupported_task", {**OCR, "task": "object_detection", "model": PALIGEMMA_ID}, "task"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.code} {case.param}")
def test_refused_request_has_the_status_and_body_of_the_contract(case: Refused) -> None:
    error = error_of(client().predict(case.fields))
    assert (error["code"], error["param"]) == (case.code, case.param)
    assert len(error["message"]) < 600


def failing(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (aiohttp.ClientConnectionError("refused"), "not_ready"),
        (TimeoutError("late"), "deadline_exceeded"),
        (RuntimeError("secret detail"), "internal"),
    ],
)
def test_failed_runner_has_the_status_and_body_of_the_contract(failure: Exception, code: str) -> None:
    response = client(failing(failure)).predict(OCR)
    assert error_of(response)["code"] == code
    assert str(failure) not in response.text


def test_overload_says_when_to_come_again() -> None:
    response = client(make_core(max_pending=0)).predict(OCR)
    assert error_of(response)["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


def test_statuses_are_those_of_the_contract() -> None:
    assert {code: status for code, status in STATUSES.items() if code != "internal"} == {
        "invalid_request": 400,
        "unauthorized": 401,
        "unknown_model": 404,
        "image_too_large": 413,
        "payload_too_large": 413,
        "unsupported_image": 415,
        "unsupported_task": 422,
        "overloaded": 429,
        "not_ready": 503,
        "deadline_exceeded": 504,
    }


class BrokenCore(Core):
    """A core with a defect."""

    async def predict(self, *_: object) -> Answer:
        raise RuntimeError("secret detail")

    async def compare(self, *_: object) -> Comparison:
        raise RuntimeError("secret detail")


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_defect_is_answered_with_a_fixed_text_and_logged(path: str, caplog: pytest.LogCaptureFixture) -> None:
    broken = client(BrokenCore(served_models(), {}, 1, 1))
    response = broken.send("POST", path, json=OCR, headers={"X-Request-Id": "my-id"})
    error = error_of(response)
    assert (error["code"], error["message"]) == ("internal", "the service failed; its log tells more")
    assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == "request my-id failed"


def test_every_route_answers_not_ready_before_the_start() -> None:
    api = Client(RestApi(SETTINGS))
    responses = [
        api.get("/v1/models"),
        api.get("/v1/tasks"),
        api.get("/openapi.json"),
        api.predict(OCR),
        api.compare(OCR),
    ]
    assert [error_of(response)["code"] for response in responses] == ["not_ready"] * 5


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/predict"), ("POST", "/v1/models"), ("GET", "/v1/nothing")])
def test_wrong_method_and_path_are_answered_with_an_error_body(method: str, path: str) -> None:
    response = client().send(method, path)
    assert response.status_code in (404, 405)
    assert set(response.json()["error"]) == {"code", "message", "param", "request_id"}


def test_refusals_are_counted_by_code() -> None:
    def count(code: str) -> float:
        labels = {"api": "rest", "model": "none", "task": "none", "status": code}
        return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0

    before = [count(case.code) for case in REFUSED[-2:]]
    for case in REFUSED[-2:]:
        client().predict(case.fields)
    assert [count(case.code) for case in REFUSED[-2:]] == [before[0] + 1, before[1]]  # the last has a model


def test_error_of_a_model_is_counted_once() -> None:
    def count(model: str) -> float:
        labels = {"api": "rest", "model": model, "task": "ocr" if model != "none" else "none", "status": "not_ready"}
        return REGISTRY.get_sample_value("diptych_requests_total", labels) or 0.0

    before = count(FLORENCE_ID), count("none")
    client(failing(aiohttp.ClientConnectionError("refused"))).predict(OCR)
    assert (count(FLORENCE_ID), count("none")) == (before[0] + 1, before[1])


# Keys


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_text(hashlib.sha256(b"my-key").hexdigest())
    return ApiKeys.load(file)


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic my-key"])
def test_request_without_an_accepted_key_is_refused_on_every_route(keys: ApiKeys, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    api = client(keys=keys)
    for method, path in [("POST", "/v1/predict"), ("POST", "/v1/compare"), ("GET", "/v1/models"), ("GET", "/v1/tasks")]:
        response = api.send(method, path, headers=headers)
        assert error_of(response)["code"] == "unauthorized"
        assert response.headers["www-authenticate"] == "Bearer"


def test_request_with_an_accepted_key_is_answered(keys: ApiKeys) -> None:
    api = client(keys=keys)
    assert api.predict(OCR, Authorization="Bearer my-key").status_code == 200
    assert api.get("/v1/models", headers={"Authorization": "Bearer my-key"}).status_code == 200


def test_contract_is_shown_without_a_key(keys: ApiKeys) -> None:
    assert [client(keys=keys).get(path).status_code for path in ("/docs", "/openapi.json")] == [200, 200]


# Headers


@pytest.mark.parametrize("request_id", ["a", "A-1_b.2", "x" * 64])
def test_request_id_of_the_client_is_kept(request_id: str) -> None:
    for response in (client().predict(OCR, X_Request_Id=request_id), client().predict({}, X_Request_Id=request_id)):
        assert response.headers["x-request-id"] == request_id
    assert client().predict(OCR, X_Request_Id=request_id).json()["id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "a b", "x" * 65, "a\tb", "<script>", "\xe4"])
def test_other_request_ids_are_replaced_by_a_new_one(request_id: str | None) -> None:
    headers = {"X-Request-Id": request_id.encode("latin-1")} if request_id is not None else {}
    ids = [client().send("POST", "/v1/predict", json=OCR, headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "deadline", ["0", "-1", "1.5", "soon", "", "1e3", "\xb2", "00", "9" * 16, "9" * 400, "9" * 5000]
)
def test_deadline_that_is_no_whole_number_above_0_is_refused(deadline: str) -> None:
    response = client().send("POST", "/v1/predict", json=OCR, headers={"X-Deadline-Ms": deadline.encode("latin-1")})
    error = error_of(response)
    assert error["code"] == "invalid_request"
    assert "X-Deadline-Ms must be a whole number of milliseconds" in error["message"]


def test_request_ends_at_its_deadline() -> None:
    never = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
    start_s = time.monotonic()
    assert error_of(client(never).predict(OCR, X_Deadline_Ms="100"))["code"] == "deadline_exceeded"
    assert 0.1 <= time.monotonic() - start_s < 3


def test_deadline_of_a_client_is_at_most_that_of_the_service() -> None:
    never = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
    impatient = client(never, values=Settings(request_timeout_s=1))
    start_s = time.monotonic()
    assert error_of(impatient.predict(OCR, X_Deadline_Ms="999999999999"))["code"] == "deadline_exceeded"
    assert time.monotonic() - start_s < 4


def test_body_that_grows_too_large_is_refused_without_a_declared_length() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for _ in range(MAX_BODY_BYTES // 1000 + 1):
            yield b"x" * 1000

    response = client().send("POST", "/v1/predict", content=chunks(), headers={"Content-Type": "application/json"})
    assert error_of(response)["code"] == "payload_too_large"


# Whatever a client sends


def post(body: bytes, content_type: str) -> httpx.Response:
    return client().send("POST", "/v1/predict", content=body, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    "fields",
    [
        {"\ud800": 1},
        {"task": "\ud800"},
        {"model": "\ud800"},
        {"image": "\ud800"},
        {"models": ["\ud800"]},
        {"task": "open_vocabulary_detection", "labels": ["\ud800"]},
        {"task": "visual_question_answering", "question": "\udfff"},
        {"x\0": 1},
        {"temperature": 10**400},
        {"seed": 10**4000},
        {"task": "region_description", "region": [10**400, 1, 2, 3]},
        {"": 1},
    ],
    ids=lambda fields: ascii(fields)[:40],
)
def test_odd_json_is_refused_with_an_error_body(fields: dict[str, Any]) -> None:
    response = post(json.dumps({**OCR, **fields}).encode(), "application/json")
    assert 400 <= response.status_code < 500
    assert error_of(response)["message"]


def test_lone_surrogate_in_the_name_of_a_form_field_is_refused_with_an_error_body() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="'
    body = head + b'image"; filename="a"\r\n\r\n' + PNG + b"\r\n" + head + b'+2AA-"\r\n\r\n1\r\n--b--\r\n'
    response = post(body, "multipart/form-data; boundary=b; charset=utf-7")
    assert error_of(response)["code"] == "invalid_request"


def nested(task: str, name: str, depth: int, bracket: str) -> httpx.Response:
    opening, closing = ("[", "]") if bracket == "[]" else ('{"a":', "}")
    fields = json.dumps({**OCR, "task": task}).removesuffix("}")
    return post(f'{fields}, "{name}": {opening * depth}1{closing * depth}}}'.encode(), "application/json")


@pytest.mark.parametrize(
    ("task", "name"), [("ocr", "model"), ("open_vocabulary_detection", "labels"), ("region_description", "region")]
)
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_nesting_of_any_depth_is_refused_with_an_error_body(task: str, name: str, bracket: str) -> None:
    """At the depth that json can just read, what comes after it may run out of stack."""
    depths = range(1, 2000)
    most = bisect.bisect_left(depths, True, key=lambda depth: "not JSON" in nested(task, name, depth, bracket).text)
    for depth in range(depths[most] - 8, depths[most] + 1):
        assert error_of(nested(task, name, depth, bracket))["code"] == "invalid_request", depth


TEXTS = st.text(st.sampled_from("aB1 \0\n;ä\ud800😀"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=3),
)
FIELD_NAMES = st.sampled_from(
    ["task", "model", "labels", "region", "phrase", "seed", "temperature", "mask_format", "detail", "x"]
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=4))
def test_no_json_makes_a_500(fields: dict[str, Any]) -> None:
    response = post(json.dumps({**OCR, **fields}).encode(), "application/json")
    assert response.status_code == 200 or error_of(response)["code"] != "internal"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of EXIF that it cannot read
@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SMALL_PNG) - 1), st.binary(min_size=1, max_size=4))
def test_no_image_makes_a_500(place: int, replacement: bytes) -> None:
    image = SMALL_PNG[:place] + replacement + SMALL_PNG[place + len(replacement) :]
    response = client().send("POST", "/v1/predict", files={"image": ("a.png", image)}, data={"task": "ocr"})
    assert response.status_code == 200 or error_of(response)["code"] in ("unsupported_image", "image_too_large")


def test_client_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"diptych")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers}
    with contextlib.suppress(StopIteration):
        asyncio.run(client().api.app()(scope, receive, send))
    assert sent[0]["status"] == 499
    assert [record for record in caplog.records if record.exc_info] == []
