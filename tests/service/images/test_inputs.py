"""An id belongs to one key and one content, and cannot be guessed."""

from dataclasses import replace

import pytest

from service.errors import InvalidRequest
from service.images.inputs import (
    ID_CHARS,
    AllowedHost,
    CheckedUrl,
    HandleIds,
    ImageHandle,
    check_url,
)

ANY = [AllowedHost("*")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://example.org/a.png", ("http", "example.org", 80, "/a.png")),
        ("HTTPS://Example.ORG", ("https", "example.org", 443, "")),
        ("https://example.org:443/a?b=c&d=%20", ("https", "example.org", 443, "/a?b=c&d=%20")),
        ("https://example.org?b", ("https", "example.org", 443, "?b")),
        ("https://example.org/a#b", ("https", "example.org", 443, "/a")),
        ("https://xn--a-ecp.example/a@b:c", ("https", "xn--a-ecp.example", 443, "/a@b:c")),
        ("https://1.2.3.example/", ("https", "1.2.3.example", 443, "/")),
        ("http://93.184.215.14/", ("http", "93.184.215.14", 80, "/")),
        ("http://[2606:2800::1]/", ("http", "2606:2800::1", 80, "/")),
    ],
)
def test_url_is_parsed(text: str, parts: tuple[str, str, int, str]) -> None:
    expected = CheckedUrl(*parts)
    assert check_url(text, ANY) == expected
    path = f"/{expected.path.removeprefix('/')}"
    assert check_url(expected.text, ANY) == replace(expected, path=path)


OTHER_URLS = (
    "http:// http:///a example.org/a.png ftp://example.org/ http://user@example.org/"
    " http://example.org:/ http://-a.example/ http://a-.example/ http://a..example/"
    " http://.example/ http://example.org./ http://1.2.3/ http://0x7f.1/ http://2130706433/"
    " http://b\u00fccher.example/ http://example.\u212aim/ http://example.org/\u00e4"
    rf" http://example.org/\ http://{'a' * 64}.example/ http://example.org/{'a' * 2048}"
).split()


@pytest.mark.parametrize(
    "text", ["", *OTHER_URLS, "http://example.org/a b", "http://example.org/\n"]
)
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be an http") as caught:
        check_url(text, ANY)
    assert caught.value.param == "image"


@pytest.mark.parametrize(
    ("allowed", "url", "is_allowed"),
    [
        ("*", "https://example.org/", True),
        ("*", "https://example.org:8443/", False),
        ("*:8443", "https://example.org:8443/", True),
        ("*:8443", "https://example.org/", False),
        ("example.org", "http://EXAMPLE.org/", True),
        ("Example.org", "http://example.org/", True),
        ("example.org", "http://www.example.org/", False),
        ("example.org", "http://example.org.evil.example/", False),
        ("example.org", "http://example.org:81/", False),
        ("example.org:81", "http://example.org:81/", True),
        ("[2606:2800::1]:81", "http://[2606:2800::1]:81/", True),
    ],
)
def test_host_and_port_must_be_allowed(allowed: str, url: str, is_allowed: bool) -> None:
    hosts = [AllowedHost.parse(allowed)]
    if is_allowed:
        check_url(url, hosts)
    else:
        with pytest.raises(InvalidRequest, match="the allowed hosts are "):
            check_url(url, hosts)


@pytest.mark.parametrize(
    "text",
    ["", "http://example.org", "example.org/", "*.example.org", "a b", "example.org:x", "**"],
)
def test_invalid_allowed_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a host name, an IP address or"):
        AllowedHost.parse(text)


IDS = HandleIds(b"secret")


def test_id_is_of_one_key_and_content() -> None:
    text = IDS.make("one", b"image")
    assert (text[:4], len(text)) == ("img_", ID_CHARS)
    assert text == IDS.make("one", b"image")
    assert len({text, IDS.make("two", b"image"), IDS.make("one", b"other")}) == 3
    assert HandleIds(b"another").make("one", b"image") != text
    assert IDS.name("one", ImageHandle(text)) == text[4:36]
    assert IDS.name("two", ImageHandle(text)) is None


def test_changed_id_is_invalid() -> None:
    text = IDS.make("one", b"image")
    others = ["", "img_", text[:-1], f"{text}0", text.upper(), f"{text}\n", "../../a"]
    for index in range(4, len(text)):
        digit = "0" if text[index] != "0" else "1"
        others.append(f"{text[:index]}{digit}{text[index + 1 :]}")
    assert {IDS.name("one", ImageHandle(other)) for other in others} == {None}
