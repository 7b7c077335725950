import asyncio
import bisect
import contextlib
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.http_app import rest_app
from tests.support.fake_service import PNG
from tests.support.rest_client import OCR, SMALL_PNG, client, error_of


def post(body: bytes, content_type: str) -> httpx.Response:
    return client().send(
        "POST", "/v1/predict", content=body, headers={"Content-Type": content_type}
    )


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
def test_unusual_json_is_rejected_with_an_error_body(fields: dict[str, Any]) -> None:
    response = post(json.dumps({**OCR, **fields}).encode(), "application/json")
    assert 400 <= response.status_code < 500
    assert error_of(response)["message"]


@pytest.mark.parametrize("name", ["task", "model", "image", "labels", "x", "mask_format"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
def test_lone_surrogate_in_any_string_is_named(name: str, text: str) -> None:
    for value in (text, [{"a": text}]):
        error = error_of(post(json.dumps({**OCR, name: value}).encode(), "application/json"))
        assert (error["code"], error["param"].partition(".")[0]) == ("invalid_request", name)
        assert "contains a lone surrogate" in error["message"]
    raw = json.dumps({**OCR, name: text}, ensure_ascii=False).encode(errors="surrogatepass")
    assert error_of(post(raw, "application/json"))["param"] == name


def test_lone_surrogate_in_a_field_name_is_rejected_with_an_error_body() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="'
    body = (
        head
        + b'image"; filename="a"\r\n\r\n'
        + PNG
        + b"\r\n"
        + head
        + b'+2AA-"\r\n\r\n1\r\n--b--\r\n'
    )
    response = post(body, "multipart/form-data; boundary=b; charset=utf-7")
    assert error_of(response)["code"] == "invalid_request"


def nested(task: str, name: str, depth: int, bracket: str) -> httpx.Response:
    opening, closing = ("[", "]") if bracket == "[]" else ('{"a":', "}")
    fields = json.dumps({**OCR, "task": task}).removesuffix("}")
    return post(
        f'{fields}, "{name}": {opening * depth}1{closing * depth}}}'.encode(), "application/json"
    )


@pytest.mark.parametrize(
    ("task", "name"),
    [("ocr", "model"), ("open_vocabulary_detection", "labels"), ("region_description", "region")],
)
@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_deep_nesting_is_rejected_with_an_error_body(task: str, name: str, bracket: str) -> None:
    """At the greatest depth that json can parse, later steps may overflow the stack."""
    depths = range(1, 2000)
    most = bisect.bisect_left(
        depths, True, key=lambda depth: "not JSON" in nested(task, name, depth, bracket).text
    )
    for depth in range(depths[most] - 8, depths[most] + 1):
        assert error_of(nested(task, name, depth, bracket))["code"] == "invalid_request", depth


TEXTS = st.text(st.sampled_from("aB1 \0\n;ä\ud800😀"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=3),
)
FIELD_NAMES = st.sampled_from(
    [
        "task",
        "model",
        "labels",
        "region",
        "phrase",
        "seed",
        "temperature",
        "mask_format",
        "detail",
        "x",
    ]
)


@settings(max_examples=60)
@given(st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=4))
def test_no_json_causes_a_500(fields: dict[str, Any]) -> None:
    response = post(json.dumps({**OCR, **fields}).encode(), "application/json")
    assert response.status_code == 200 or error_of(response)["code"] != "internal"


@settings(max_examples=60)
@given(st.integers(0, len(SMALL_PNG) - 1), st.binary(min_size=1, max_size=4))
def test_no_image_causes_a_500(place: int, replacement: bytes) -> None:
    image = SMALL_PNG[:place] + replacement + SMALL_PNG[place + len(replacement) :]
    response = client().send(
        "POST", "/v1/predict", files={"image": ("a.png", image)}, data={"task": "ocr"}
    )
    assert response.status_code == 200 or error_of(response)["code"] in (
        "unsupported_image",
        "image_too_large",
    )


def test_disconnected_client_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    messages = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"host", b"diptych")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "query_string": b"",
        "headers": headers,
    }
    with contextlib.suppress(StopIteration):
        asyncio.run(rest_app(client().boundary)(scope, receive, send))
    assert sent[0]["status"] == 499
    assert [record for record in caplog.records if record.exc_info] == []
