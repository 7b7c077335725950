"""Images by URL, from HTTP hosts on this machine: a fetcher that is told to which addresses it may connect."""

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trustme

from service.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge, ServiceError
from service.images.fetching import FetchLimits, ImageFetcher
from service.images.host_addresses import Resolver, is_public
from service.images.url_rules import AllowedHost, ImageUrl
from tests.support.attack_urls import ADDRESSES, INTERNAL, attacks
from tests.support.image_hosts import ImageHost, Names, listening, redirect, response

OUTSIDE = "127.0.0.2"  # stands for an address of the internet
NAMES = {"images.test": [OUTSIDE], "other.test": [OUTSIDE], **ADDRESSES}
BODY = b"any bytes"
LIMITS = FetchLimits(max_bytes=1000, timeout_s=5)


def is_outside(address: str) -> bool:
    return address == OUTSIDE or is_public(address)


def fetcher(*allowed: str, resolver: Resolver | None = None, limits: FetchLimits = LIMITS) -> ImageFetcher:
    return ImageFetcher([AllowedHost.parse(each) for each in allowed], limits, resolver or Names(NAMES), is_outside)


async def get(reader: ImageFetcher, url: str, timeout_s: float = 60) -> bytes:
    return await reader.fetch(ImageUrl(url), time.monotonic() + timeout_s)


async def outcome(reader: ImageFetcher, url: str, timeout_s: float = 60) -> bytes | ServiceError:
    try:
        return await get(reader, url, timeout_s)
    except ServiceError as error:
        return error


def fetched(
    answers: Mapping[str, bytes | Sequence[bytes]], path: str = "/a.png", limits: FetchLimits = LIMITS
) -> bytes | ServiceError:
    """Return what comes of asking a host of the internet."""

    async def ask() -> bytes | ServiceError:
        async with listening(ImageHost(answers), OUTSIDE) as host:
            return await outcome(fetcher(f"*:{host.port}", limits=limits), f"http://images.test:{host.port}{path}")

    return asyncio.run(ask())


def refused(outcome: bytes | ServiceError) -> str:
    assert isinstance(outcome, InvalidRequest)
    assert outcome.param == "image"
    assert OUTSIDE not in outcome.message
    assert INTERNAL not in outcome.message
    return outcome.message


def test_an_image_is_read() -> None:
    assert fetched({"/a.png": response(BODY)}) == BODY
    assert fetched({"/a.png?b=%20c": response(BODY)}, "/a.png?b=%20c#d") == BODY


def test_a_request_tells_the_host_its_name_and_nothing_of_ours() -> None:
    async def ask() -> tuple[str, int]:
        async with listening(ImageHost({"/": response(BODY, "200 OK", "Set-Cookie: a=b")}), OUTSIDE) as host:
            reader = fetcher(f"*:{host.port}")
            assert [await get(reader, f"http://images.test:{host.port}") for _ in range(2)] == [BODY] * 2
            return host.requests[-1], host.port

    head, port = asyncio.run(ask())
    request, *headers = head.strip().split("\r\n")
    assert request == "GET / HTTP/1.1"
    assert {name.lower(): value for name, value in (line.split(": ") for line in headers)} == {
        "host": f"images.test:{port}",
        "accept": "image/jpeg, image/png, image/webp",
        "accept-encoding": "identity",
        "user-agent": "diptych",
        "connection": "close",
    }


def test_no_attack_reaches_an_internal_host() -> None:
    async def ask(internal: ImageHost, urls: list[str]) -> None:
        reader = fetcher("*", f"*:{internal.port}")
        for url in urls:
            error = await outcome(reader, url)
            assert isinstance(error, InvalidRequest), (url, error)
            assert error.param == "image"
        assert internal.num_connections == 0

    async def listen() -> int:
        async with listening(ImageHost(), INTERNAL) as v4, listening(ImageHost(), "::1", v4.port) as v6:
            urls = attacks(v4.port)
            await ask(v4, urls)
            assert v6.num_connections == 0
            return len(urls)

    assert asyncio.run(listen()) >= 40


def test_no_redirect_reaches_an_internal_host() -> None:
    async def ask() -> None:
        async with listening(ImageHost(), INTERNAL) as internal, listening(ImageHost(), OUTSIDE) as host:
            urls = [url for url in attacks(internal.port) if "\r" not in url and "\n" not in url]
            host.answers = {f"/{index}": redirect(url) for index, url in enumerate(urls)}
            reader = fetcher("*", f"*:{internal.port}", f"*:{host.port}")
            for index, url in enumerate(urls):
                error = await outcome(reader, f"http://images.test:{host.port}/{index}")
                assert isinstance(error, InvalidRequest), (url, error)
            assert internal.num_connections == 0
            assert len(host.requests) >= len(urls)

    asyncio.run(ask())


def test_the_address_that_was_checked_is_the_one_connected_to() -> None:
    async def ask() -> None:
        answers = {"/": response(BODY), "/again": redirect("/")}
        async with (
            listening(ImageHost(answers), OUTSIDE) as host,
            listening(ImageHost(), INTERNAL, host.port) as internal,
        ):
            url = f"http://rebinding.test:{host.port}"
            names = Names({"rebinding.test": [[OUTSIDE], [INTERNAL]]})
            assert await get(fetcher(f"*:{host.port}", resolver=names), url) == BODY
            assert names.num_asked == 1
            names = Names({"rebinding.test": [[OUTSIDE], [INTERNAL]]})
            refused(await outcome(fetcher(f"*:{host.port}", resolver=names), f"{url}/again"))
            assert names.num_asked == 2
            assert internal.num_connections == 0

    asyncio.run(ask())


def test_an_internal_name_is_told_like_one_that_does_not_exist() -> None:
    async def ask() -> list[str]:
        reader = fetcher("*")
        return [
            refused(await outcome(reader, f"http://{name}/")) for name in ("intranet", "nowhere.test", "other.example")
        ]

    first, second, third = asyncio.run(ask())
    assert first.replace("intranet", "X") == second.replace("nowhere.test", "X") == third.replace("other.example", "X")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed(status: str) -> None:
    answers = {"/a.png": response(b"", status, "Location: /b/c.png"), "/b/c.png": response(BODY)}
    assert fetched(answers) == BODY


def test_redirects_end() -> None:
    chain = {f"/{number}": redirect(f"/{number + 1}") for number in range(9)}
    assert fetched({**chain, "/4": response(BODY)}, "/1") == BODY
    assert "more than 3 times" in refused(fetched({**chain, "/5": response(BODY)}, "/1"))
    assert "more than 3 times" in refused(fetched({"/a.png": redirect("/a.png")}))


@pytest.mark.parametrize("location", ["", "//", "http://[", "http://other.example/", "/a b", "/\u00e4", "mailto:a@b"])
def test_a_redirect_to_where_it_may_not_read_is_refused(location: str) -> None:
    assert refused(fetched({"/a.png": redirect(location)}))


def test_a_redirect_to_a_host_that_is_not_allowed_is_refused() -> None:
    async def ask() -> None:
        async with listening(ImageHost(), OUTSIDE) as host:
            host.answers = {"/": redirect(f"http://other.test:{host.port}/a"), "/a": response(BODY)}
            reader = fetcher(f"images.test:{host.port}")
            assert "reads from images.test" in refused(await outcome(reader, f"http://images.test:{host.port}"))
            assert len(host.requests) == 1

    asyncio.run(ask())


@pytest.mark.parametrize("status", ["204 No Content", "206 Partial", "304 Not Modified", "404 Not Found", "500 Error"])
def test_another_status_is_told(status: str) -> None:
    assert f"status {status.split()[0]}" in refused(fetched({"/a.png": response(b"", status)}))


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_unread(encoding: str) -> None:
    assert "compressed" in refused(fetched({"/a.png": response(BODY, "200 OK", f"Content-Encoding: {encoding}")}))


def test_bytes_are_bounded_by_what_is_declared_and_by_what_comes() -> None:
    most = LIMITS.max_bytes
    chunk = b"a\r\n" + b"x" * 10 + b"\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = [chunked, *[chunk] * (most // 10 + 1)]
    declared = [f"HTTP/1.1 200 OK\r\nContent-Length: {most + 1}\r\n\r\n".encode()]
    for answer in (response(bytes(most + 1)), endless, declared):
        error = fetched({"/a.png": answer})
        assert isinstance(error, PayloadTooLarge)
        assert (error.param, str(most) in error.message) == ("image", True)
    assert fetched({"/a.png": response(bytes(most))}) == bytes(most)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12"])
def test_a_host_that_does_not_go_on_is_left(sent: bytes) -> None:
    start_s = time.monotonic()
    error = fetched({"/a.png": [sent]}, limits=FetchLimits(1000, timeout_s=0.2))
    assert "within 0.2 s" in refused(error)
    assert time.monotonic() - start_s < 3


def test_the_deadline_of_the_request_goes_first() -> None:
    async def ask() -> bytes | ServiceError:
        async with listening(ImageHost({"/": [b""]}), OUTSIDE) as host:
            return await outcome(fetcher(f"*:{host.port}"), f"http://images.test:{host.port}", timeout_s=0.1)

    assert isinstance(asyncio.run(ask()), DeadlineExceeded)


@pytest.mark.parametrize(
    "sent",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1", b"HTTP/1.1 200 OK\r\nA\r\n\r\n", b""],
)
def test_a_host_that_breaks_off_or_speaks_no_http_is_told(sent: bytes) -> None:
    assert "cannot be reached, or broke off" in refused(fetched({"/a.png": sent}))


def test_a_host_that_does_not_listen_is_told() -> None:
    async def ask() -> bytes | ServiceError:
        async with listening(ImageHost(), OUTSIDE) as host:
            pass
        return await outcome(fetcher(f"*:{host.port}"), f"http://images.test:{host.port}")

    assert "cannot be reached" in refused(asyncio.run(ask()))


def test_a_certificate_is_checked_for_the_name_of_the_url() -> None:
    names: list[str | None] = []

    def note_name(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    async def ask() -> bytes | ServiceError:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("images.test").configure_cert(context)
        context.sni_callback = note_name
        server = await asyncio.start_server(ImageHost().serve, OUTSIDE, 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            return await outcome(fetcher(f"*:{port}"), f"https://images.test:{port}")
        finally:
            server.close()

    assert "no certificate that is accepted" in refused(asyncio.run(ask()))
    assert names == ["images.test"]


def test_no_proxy_or_netrc_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetched({"/a.png": response(BODY)}) == BODY
