import asyncio
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.http.body import RequestBody, read_body
from tests.support.request_bodies import (
    BASE64,
    FORM,
    IMAGE,
    JSON,
    file_part,
    form,
    memory,
    part,
    read,
    read_form,
    read_json,
    request,
)

FIELDS: dict[str, Any] = {
    "task": "open_vocabulary_detection",
    "model": "florence-2-mini",
    "labels": ["red circle", "Käfer"],
    "region": [1, 2.5, 30, 40],
    "max_new_tokens": 12,
    "temperature": 0.5,
    "seed": 7,
    "num_beams": 1,
    "top_p": 0.9,
    "constrained": False,
    "question": "7",
}


def parts_of(name: str, value: object, is_json: bool) -> Sequence[bytes]:
    if isinstance(value, list):
        return (
            [part(name, json.dumps(value))]
            if is_json
            else [part(name, str(item)) for item in value]
        )
    return [part(name, value if isinstance(value, str) else json.dumps(value))]


@pytest.mark.parametrize(
    "is_json", [True, False], ids=["lists as JSON", "lists as repeated fields"]
)
def test_form_and_json_are_read_to_the_same_body(is_json: bool) -> None:
    parts = [one for name, value in FIELDS.items() for one in parts_of(name, value, is_json)]
    from_form = read_form(*parts)
    from_json = read_json(image=BASE64, **FIELDS)
    assert from_form == from_json == RequestBody(IMAGE, FIELDS)
    assert [type(v) for v in from_form.fields.values()] == [
        type(v) for v in from_json.fields.values()
    ]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["circle,square"], ["circle", "square"]),
        (["circle, red square ,"], ["circle", "red square"]),
        (["a", "b,c"], ["a", "b", "c"]),
        (['"a red car, parked", dog'], ["a red car, parked", "dog"]),
        (['["a, b"]'], ["a, b"]),
        ([","], [","]),
        (['a,"b'], ["a", '"b']),
        (["x,y" * 201], ["x,y" * 201]),
    ],
)
def test_a_list_of_a_form_is_split_outside_quotes(texts: list[str], labels: list[str]) -> None:
    fields = read_form(*[part("labels", text) for text in texts]).fields
    assert fields == {"labels": labels}
    numbers = read_form(part("region", "1, 2.5,30,40"), part("models", "a,b")).fields
    assert numbers == {"region": [1, 2.5, 30, 40], "models": ["a", "b"]}


def test_body_in_many_chunks_is_the_body() -> None:
    body = form(file_part("image", IMAGE), part("task", "ocr"))
    chunks = [body[i : i + 1] for i in range(len(body))]
    assert asyncio.run(read_body(request(chunks, FORM), memory())) == RequestBody(
        IMAGE, {"task": "ocr"}
    )


@pytest.mark.parametrize(
    "content_type", [JSON, "APPLICATION/JSON", "application/json; charset=utf-8"]
)
def test_json_content_type_is_read_without_case_and_options(content_type: str) -> None:
    assert read(json.dumps({"image": BASE64}).encode(), content_type) == RequestBody(IMAGE, {})


@pytest.mark.parametrize(
    "value", ["twelve", "1e", "", "true", "null", "[1]", "NaN", "Infinity", "0x10", "9" * 5000]
)
def test_invalid_number_of_a_form_stays_text(value: str) -> None:
    assert read_form(part("seed", value)).fields == {"seed": value}


@pytest.mark.parametrize("value", ["True", "1", "", "yes", "null"])
def test_invalid_boolean_of_a_form_stays_text(value: str) -> None:
    assert read_form(part("constrained", value)).fields == {"constrained": value}


@pytest.mark.parametrize("value", ["true", "12", "null", '{"a": 1}'])
def test_text_of_a_form_stays_text(value: str) -> None:
    assert read_form(part("question", value)).fields == {"question": value}


def test_single_label_of_a_form_is_a_list() -> None:
    assert read_form(part("labels", "dog")).fields == {"labels": ["dog"]}


@pytest.mark.parametrize("value", ["[1, 2", "[NaN]", "[Infinity, 1, 2, 3]", "[" * 50_000])
def test_malformed_json_list_of_a_form_is_rejected_by_name(value: str) -> None:
    with pytest.raises(InvalidRequest, match="region") as caught:
        read_form(part("region", value))
    assert caught.value.param == "region"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("[" + "{}," * 10_000 + "{}]", "has more than 10000 values, lists and objects"),
        ('["' + r"\/" * 2_000_001 + '"]', "has more than 2000000 escapes"),
        ('[{"a": 1, "a": 2}]', "'a' occurs 2 times"),
        (r'["\ud800"]', "contains a lone surrogate"),
    ],
    ids=lambda value: value[:20],
)
def test_json_list_of_a_form_has_the_limits_of_a_json_body(value: str, reason: str) -> None:
    body = form(file_part("image", IMAGE), part("labels", value))
    with pytest.raises(InvalidRequest, match=reason) as caught:
        asyncio.run(read_body(request([body], FORM), memory(len(body))))
    assert (caught.value.param, caught.value.message[:6]) == ("labels", "labels")


def test_large_fields_of_a_form_are_parsed_off_the_event_loop() -> None:
    async def scenario() -> None:
        reading = asyncio.ensure_future(read_body(request([body], FORM), memory(len(body))))
        while not reading.done():
            names.update(thread.name for thread in threading.enumerate())
            await asyncio.sleep(0)
        assert (await reading).fields == {"labels": ["a" * 300_000]}

    names: set[str] = set()
    body = form(file_part("image", IMAGE), part("labels", json.dumps(["a" * 300_000])))
    asyncio.run(scenario())
    assert any(name.startswith("asyncio_") for name in names)  # threads of the loop's executor


@pytest.mark.parametrize("name", ["task", "seed", "question", "unknown"])
def test_repeated_form_field_is_rejected_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} occurs 2 times") as caught:
        read_form(part(name, "1"), part(name, "2"))
    assert caught.value.param == name


def test_repeated_json_name_is_rejected() -> None:
    with pytest.raises(InvalidRequest, match="task"):
        read(b'{"image": "QUJD", "task": "ocr", "task": "captioning"}', JSON)


@pytest.mark.parametrize("name", ["task", "labels", "seed"])
def test_file_other_than_the_image_is_rejected_by_name(name: str) -> None:
    with pytest.raises(
        InvalidRequest, match=f"{name} is a file; only image may be a file"
    ) as caught:
        read_form(file_part(name, b"x"))
    assert caught.value.param == name
