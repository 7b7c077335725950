"""URLs of images are parsed once, and the addresses of their hosts are the internet's."""

from dataclasses import replace

import pytest

from service.errors import InvalidRequest
from service.outbound.urls import AllowedHost, CheckedUrl, check_url, is_public

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


PUBLIC = "1.1.1.1 93.184.215.14 223.255.255.255 172.32.0.1 100.128.0.1 2606:2800:21f::1 2a00::1"
SPECIAL = (
    "0.0.0.0 0.1.2.3 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255"
    " 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1"
    " 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1"
    " 255.255.255.255 168.63.129.16 :: ::1 ::127.0.0.1 ::ffff:1.1.1.1 ::ffff:127.0.0.1"
    " 64:ff9b::101:101 64:ff9b:1::1 100::1 2001::1 2001:db8::1 2002:101:101:: 3fff::1 5f00::1"
    " fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2606:2800::1%eth0 4000::1"
    " localhost 1.1.1"
)


def test_internet_addresses_are_public() -> None:
    assert not [address for address in PUBLIC.split() if not is_public(address)]
    assert not [address for address in ["", *SPECIAL.split()] if is_public(address)]
