import asyncio
import contextlib
import time

import pytest

from service.errors import InvalidRequest
from service.http.body import read_body
from service.http.json_values import json_object
from tests.support.request_bodies import (
    FORM,
    IMAGE,
    JSON,
    file_part,
    form,
    memory,
    part,
    read,
    request,
)


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "image/png"]
)
def test_other_content_types_are_rejected_with_the_supported_ones(content_type: str | None) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data or application/json"):
        read(b"{}", content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(file_part("image", IMAGE)), "multipart/form-data"),
        (form(file_part("image", IMAGE)), "multipart/form-data; boundary="),
        (form(file_part("image", IMAGE)), f"multipart/form-data; boundary={'b' * 5000}"),
        (form(file_part("image", IMAGE)), "multipart/form-data; boundary=\xe9"),
        (b"not multipart at all", FORM),
        (b"--b\r\n\r\n\r\nx\r\n--b--\r\n", FORM),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", FORM),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, FORM),
        (form(*[part(f"f{i}", "x") for i in range(500)]), FORM),
        (b"", FORM),
    ],
)
def test_malformed_multipart_is_rejected(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        read(body, content_type)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.85, 0.95])
def test_truncated_multipart_is_rejected(kept: float) -> None:
    """The missing part may be a required field."""
    body = form(
        file_part("image", IMAGE),
        part("task", "captioning"),
        part("detail", "paragraph"),
        part("seed", "1"),
    )
    with pytest.raises(InvalidRequest):
        read(body[: int(len(body) * kept)], FORM)


def test_charset_of_a_form_cannot_slow_down_parsing() -> None:
    """Python's punycode decoder needs quadratic time, and would block the event loop."""
    body = form(part("image", IMAGE, '; filename="a"'), part("ab", b"abc-" + b"ab1c" * 150_000))
    start_s = time.process_time()
    with contextlib.suppress(InvalidRequest):  # refused is as good as read
        asyncio.run(read_body(request([body], f"{FORM}; charset=punycode"), memory(2 * len(body))))
    assert time.process_time() - start_s < 4  # 12 s with it


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\xff",
        b'{"image": "QUJD"} x',
        b"[" * 9_000,
        b'{"image": "QUJD", "task": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"a":' * 9_000,
        b'{"image": "QUJD", "seed": ' + b"9" * 5000 + b"}",
        b'{"image": "QUJD", "seed": NaN}',
        b'{"image": "QUJD", "region": [Infinity, -Infinity, 1, 2]}',
    ],
)
def test_invalid_json_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON") as caught:
        read(body, JSON)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("document", ["[]", "1", "null", '"text"'])
def test_json_other_than_an_object_is_rejected(document: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read(document.encode(), JSON)


@pytest.mark.parametrize("filling", [b"{},", b"[],", b"1,", b'{"a":0},'])
def test_json_of_very_many_values_is_refused_before_it_is_parsed(filling: bytes) -> None:
    body = b'{"image": "QUJD", "labels": [' + filling * (19_000_000 // len(filling)) + b"1]}"
    start_s = time.process_time()
    with pytest.raises(InvalidRequest, match="more than 10000 values, lists and objects"):
        json_object(body)
    assert time.process_time() - start_s < 5  # 8 s to parse


def test_values_are_counted_over_all_pieces_of_a_body() -> None:
    spread = b'{"image": "QUJD", "labels": [' + (b"1," + b" " * 500) * 9_990 + b"1]}"
    assert len(json_object(spread)["labels"]) == 9_991  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="more than 10000 values"):
        json_object(spread.replace(b"1]}", b"1" + b",1" * 20 + b"]}"))
