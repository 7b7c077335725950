import pytest

from service.errors import InvalidRequest, UnsupportedImage
from service.images.inputs import ImageUrl
from tests.support.request_bodies import (
    BASE64,
    FORM,
    IMAGE,
    JSON,
    file_part,
    form,
    part,
    read,
    read_form,
    read_json,
)


@pytest.mark.parametrize(
    "image",
    [
        BASE64,
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/webp;charset=x;BASE64,{BASE64}",
        f"data:;base64,{BASE64}",
    ],
)
def test_image_is_a_data_url_or_bare_base64(image: str) -> None:
    assert read_json(image=image).image == IMAGE
    assert read(form(part("image", image)), FORM).image == IMAGE


@pytest.mark.parametrize(
    "image", ["data:image/png,abc", "data:image/png;utf8,abc", "data:image/png;base64", "data:"]
)
def test_data_url_without_base64_is_rejected(image: str) -> None:
    with pytest.raises(InvalidRequest, match="not base64") as caught:
        read_json(image=image)
    assert caught.value.param == "image"


@pytest.mark.parametrize(
    "image",
    [
        "http://example.org/a.png",
        "HTTPS://example.org",
        "file:///etc/passwd",
        " gopher:x",
        "a+b.c-1:",
    ],
)
def test_url_of_another_scheme_than_data_is_passed_on_unread(image: str) -> None:
    assert read_json(image=image).image == ImageUrl(image)
    assert read(form(part("image", image)), FORM).image == ImageUrl(image)


@pytest.mark.parametrize(
    "image", ["QUJ", "Q!JD", "QUJD\u00e4", "//host/a.png", "_-_-", "a,b", "=", "a" * 102 + ":"]
)
def test_invalid_base64_is_unsupported_image(image: str) -> None:
    with pytest.raises(UnsupportedImage, match="not base64") as caught:
        read_json(image=image)
    assert caught.value.param == "image"


@pytest.mark.parametrize("image", [None, 1, True, ["QUJD"], {"url": "x"}])
def test_image_in_json_must_be_a_string(image: object) -> None:
    with pytest.raises(InvalidRequest, match="image must be a string"):
        read_json(image=image)


def test_missing_image_is_reported() -> None:
    for body, content_type in [(b"{}", JSON), (form(part("task", "ocr")), FORM), (form(), FORM)]:
        with pytest.raises(InvalidRequest, match="image is missing") as caught:
            read(body, content_type)
        assert caught.value.param == "image"


def test_empty_file_is_an_empty_image() -> None:
    assert read(form(file_part("image", b"")), FORM).image == b""


@pytest.mark.parametrize("second", [file_part("image", IMAGE), part("image", BASE64)])
def test_second_image_is_rejected(second: bytes) -> None:
    with pytest.raises(InvalidRequest, match="image occurs 2 times") as caught:
        read_form(second)
    assert caught.value.param == "image"
