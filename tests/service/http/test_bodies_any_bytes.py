import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import PayloadTooLarge, ServiceError
from service.http.body import RequestBody
from tests.support.request_bodies import BASE64, FORM, IMAGE, JSON, MAX_BYTES, file_part, form, read


@pytest.mark.parametrize("declared", ["-1", "many", "1e9", "", "\xb2", "9" * 5000])
def test_unusual_content_length_causes_no_internal_error(declared: str) -> None:
    try:
        assert read(json.dumps({"image": BASE64}).encode(), JSON, declared).image == IMAGE
    except PayloadTooLarge:
        assert int(declared[:10]) > MAX_BYTES


@pytest.mark.parametrize("charset", ["undefined", "\0", "base64", "utf-16", "\xe4", ""])
def test_unusual_charset_of_a_form_causes_no_internal_error(charset: str) -> None:
    assert is_read_or_refused(form(file_part("image", IMAGE)), f"{FORM}; charset={charset}")


FORM_PIECES = st.sampled_from(
    [
        *(
            b"--b",
            b"--b--",
            b"\r\n",
            b"\n",
            b"\r",
            b"--",
            b"\0",
            b"\xff",
            b": ",
            b"name=",
            b'"',
            b"[1",
            b'["a"]',
        ),
        *(b'Content-Disposition: form-data; name="image"', b'; filename="f"'),
        b'Content-Disposition: form-data; name="labels"',
    ]
)
JSON_PIECES = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"image"',
        b":",
        b",",
        b'"QUJD"',
        b'"task"',
        b"1",
        b"1e999",
        b"NaN",
        b"null",
        b'"\\ud800"',
    ]
)


def is_read_or_refused(body: bytes, content_type: str) -> bool:
    """Return True for a body or a `ServiceError`; other exceptions escape."""
    try:
        return isinstance(read(body, content_type), RequestBody)
    except ServiceError as error:
        return bool(error.message)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.lists(FORM_PIECES, max_size=30).map(b"".join)))
@example(b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\n')
def test_any_bytes_are_a_form_or_a_service_error(body: bytes) -> None:
    assert is_read_or_refused(body, FORM)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.lists(JSON_PIECES, max_size=30).map(b"".join)))
@example(b'{"image": "\\ud800"}')
def test_any_bytes_are_json_or_a_service_error(body: bytes) -> None:
    assert is_read_or_refused(body, JSON)


@settings(max_examples=200)
@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_content_type_is_read_or_a_service_error(options: str) -> None:
    assert is_read_or_refused(form(file_part("image", IMAGE)), f"multipart/form-data;{options}")
