import asyncio
import contextlib
import time

import pytest

from service.errors import InvalidRequest
from service.http.body import read_body
from tests.support.request_bodies import FORM, IMAGE, JSON, file_part, form, part, read, request


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_content_types_are_refused_with_the_known_ones(content_type: str | None) -> None:
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
def test_broken_multipart_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(InvalidRequest):
        read(body, content_type)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7, 0.85, 0.95])
def test_multipart_without_its_end_is_refused(kept: float) -> None:
    """What was cut off may be the very field that matters."""
    body = form(file_part("image", IMAGE), part("task", "captioning"), part("detail", "paragraph"), part("seed", "1"))
    with pytest.raises(InvalidRequest):
        read(body[: int(len(body) * kept)], FORM)


def test_charset_of_a_form_cannot_make_reading_slow() -> None:
    """Python's punycode decoder takes a time that grows with the square of the length, on the event loop."""
    body = form(part("image", IMAGE, '; filename="a"'), part("ab", b"abc-" + b"ab1c" * 50_000))
    start_s = time.monotonic()
    with contextlib.suppress(InvalidRequest):  # refused is as good as read
        asyncio.run(read_body(request([body], f"{FORM}; charset=punycode"), 2 * len(body)))
    assert time.monotonic() - start_s < 0.3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe\xff",
        b'{"image": "QUJD"} x',
        b"[" * 100_000,
        b'{"image": "QUJD", "task": ' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"a":' * 19_000,
        b'{"image": "QUJD", "seed": ' + b"9" * 5000 + b"}",
        b'{"image": "QUJD", "seed": NaN}',
        b'{"image": "QUJD", "region": [Infinity, -Infinity, 1, 2]}',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is not JSON") as caught:
        read(body, JSON)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("document", ["[]", "1", "null", '"text"'])
def test_json_that_is_no_object_is_refused(document: str) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read(document.encode(), JSON)
