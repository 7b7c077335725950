"""Images by URL, from HTTP hosts on this machine: the fetcher gets the addresses to which it may
connect.
"""

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trustme
from aiohttp.abc import ResolveResult

from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.images.fetching import ImageFetcher
from service.images.inputs import ImageUrl
from service.outbound.images import CheckedResolver, FileCalls
from service.outbound.messages import CallError
from service.outbound.program import DirectCalls
from service.outbound.urls import AllowedHost, is_public
from tests.support.fake_service import context
from tests.support.image_hosts import ImageHost, Names, listening, redirect, response

INTERNAL = "127.0.0.1"
OUTSIDE = "127.0.0.2"  # stands for an internet address
# URLs of an internal host that listens on PORT, and what hostile and internal name servers answer
ATTACKS = json.loads((Path(__file__).parents[2] / "support/attack_urls.json").read_text("utf-8"))
NAMES = {"images.test": [OUTSIDE], "other.test": [OUTSIDE], **ATTACKS["addresses"]}
BODY = b"any bytes"


def attacks(port: int) -> list[str]:
    return [url.replace("PORT", str(port)) for url in ATTACKS["urls"]]


def is_outside(address: str) -> bool:
    return address == OUTSIDE or is_public(address)


def fetcher(*allowed: str, names: Names | None = None, timeout_s: float = 5) -> ImageFetcher:
    hosts = list(map(AllowedHost.parse, allowed))
    calls = DirectCalls(is_outside, names or Names(NAMES))
    return ImageFetcher(hosts, 1000, calls, timeout_s)


async def get(image_fetcher: ImageFetcher, url: str, timeout_s: float = 60) -> bytes:
    counted: list[int] = []
    request = context(timeout_s=timeout_s)
    body = await image_fetcher.fetch(ImageUrl(url), request, counted.append)
    assert sum(counted) == len(body)
    return body


async def outcome(
    image_fetcher: ImageFetcher, url: str, timeout_s: float = 60
) -> bytes | ServiceError:
    try:
        return await get(image_fetcher, url, timeout_s)
    except ServiceError as error:
        return error


def fetched(
    answers: Mapping[str, bytes | Sequence[bytes]],
    path: str = "/a.png",
    limit_s: float = 5,
    deadline_s: float = 60,
) -> bytes | ServiceError:
    """Return the outcome of fetching from a host on the internet."""

    async def scenario() -> bytes | ServiceError:
        async with listening(ImageHost(answers), OUTSIDE) as host:
            url = f"http://images.test:{host.port}{path}"
            return await outcome(fetcher(f"*:{host.port}", timeout_s=limit_s), url, deadline_s)

    return asyncio.run(scenario())


def refused(outcome: bytes | ServiceError) -> str:
    assert isinstance(outcome, InvalidRequest)
    assert outcome.param == "image"
    assert OUTSIDE not in outcome.message
    assert INTERNAL not in outcome.message
    return outcome.message


def test_image_is_fetched() -> None:
    assert fetched({"/a.png": response(BODY)}) == BODY
    assert fetched({"/a.png?b=%20c": response(BODY)}, "/a.png?b=%20c#d") == BODY


async def test_request_carries_no_credentials() -> None:
    moved = response(b"", "302 Found", "Location: /again", "Set-Cookie: a=b")
    async with listening(ImageHost({"/": moved, "/again": response(BODY)}), OUTSIDE) as host:
        url = f"http://images.test:{host.port}"
        assert await get(fetcher(f"*:{host.port}"), url) == BODY
    request, *headers = host.requests[-1].strip().split("\r\n")
    assert request == "GET /again HTTP/1.1"
    pairs = [line.split(": ") for line in headers]
    assert {name.lower(): value for name, value in pairs} == {
        "host": f"images.test:{host.port}",
        "accept": "image/jpeg, image/png, image/webp, */*;q=0.1",
        "accept-encoding": "identity",
        "user-agent": "diptych",
        "connection": "close",
    }


async def test_attacks_reach_no_internal_host() -> None:
    async with listening(ImageHost(), INTERNAL) as v4, listening(ImageHost(), "::1", v4.port) as v6:
        urls = attacks(v4.port)
        image_fetcher = fetcher("*", f"*:{v4.port}")
        for url in urls:
            error = await outcome(image_fetcher, url)
            assert isinstance(error, InvalidRequest), (url, error)
            assert error.param == "image"
        assert (v4.num_connections, v6.num_connections) == (0, 0)
    assert len(urls) >= 40


async def test_redirects_reach_no_internal_host() -> None:
    async with (
        listening(ImageHost(), INTERNAL) as internal,
        listening(ImageHost(), OUTSIDE) as host,
    ):
        urls = [url for url in attacks(internal.port) if "\r" not in url and "\n" not in url]
        host.answers = {f"/{index}": redirect(url) for index, url in enumerate(urls)}
        image_fetcher = fetcher("*", f"*:{internal.port}", f"*:{host.port}")
        for index, url in enumerate(urls):
            error = await outcome(image_fetcher, f"http://images.test:{host.port}/{index}")
            assert isinstance(error, InvalidRequest), (url, error)
        assert internal.num_connections == 0
        assert len(host.requests) >= len(urls)


async def test_checked_address_is_connected() -> None:
    answers = {"/": response(BODY), "/again": redirect("/")}
    async with (
        listening(ImageHost(answers), OUTSIDE) as host,
        listening(ImageHost(), INTERNAL, host.port) as internal,
    ):
        url = f"http://rebinding.test:{host.port}"
        names = Names({"rebinding.test": [[OUTSIDE], [INTERNAL]]})
        assert await get(fetcher(f"*:{host.port}", names=names), url) == BODY
        assert names.num_lookups == 1
        names = Names({"rebinding.test": [[OUTSIDE], [INTERNAL]]})
        refused(await outcome(fetcher(f"*:{host.port}", names=names), f"{url}/again"))
        assert names.num_lookups == 2
        assert internal.num_connections == 0


async def test_internal_names_are_not_revealed() -> None:
    messages = set[str]()
    for name in ("intranet", "nowhere.test", "other.example"):
        error = await outcome(fetcher("*"), f"http://{name}/")
        messages.add(refused(error).replace(name, "X"))
    assert len(messages) == 1


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_redirect_is_followed(status: str) -> None:
    answers = {"/a.png": response(b"", status, "Location: /b/c.png"), "/b/c.png": response(BODY)}
    assert fetched(answers) == BODY


def test_redirects_are_limited() -> None:
    chain = {f"/{number}": redirect(f"/{number + 1}") for number in range(9)}
    assert fetched({**chain, "/4": response(BODY)}, "/1") == BODY
    assert "more than 3 times" in refused(fetched({**chain, "/5": response(BODY)}, "/1"))
    assert "more than 3 times" in refused(fetched({"/a.png": redirect("/a.png")}))


@pytest.mark.parametrize(
    "location", ["", "//", "http://[", "http://other.example/", "/a b", "/\u00e4", "mailto:a@b"]
)
def test_redirect_to_an_invalid_url(location: str) -> None:
    assert refused(fetched({"/a.png": redirect(location)}))


async def test_redirect_to_a_forbidden_host() -> None:
    async with listening(ImageHost(), OUTSIDE) as host:
        host.answers = {"/": redirect(f"http://other.test:{host.port}/a"), "/a": response(BODY)}
        image_fetcher = fetcher(f"images.test:{host.port}")
        assert "allowed hosts are images.test" in refused(
            await outcome(image_fetcher, f"http://images.test:{host.port}")
        )
        assert len(host.requests) == 1


@pytest.mark.parametrize(
    ("status", "header", "problem"),
    [
        ("206 Partial", "A: b", "status 206"),
        ("404 Not Found", "A: b", "status 404"),
        ("200 OK", "Content-Encoding: gzip", "Content-Encoding"),
        ("200 OK", "Content-Encoding: identity, gzip", "Content-Encoding"),
    ],
)
def test_other_response_is_reported(status: str, header: str, problem: str) -> None:
    assert problem in refused(fetched({"/a.png": response(BODY, status, header)}))


def test_fetched_size_is_limited() -> None:
    max_bytes = 1000
    chunk = b"a\r\n" + b"x" * 10 + b"\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = [chunked, *[chunk] * (max_bytes // 10 + 1)]
    declared = [f"HTTP/1.1 200 OK\r\nContent-Length: {max_bytes + 1}\r\n\r\n".encode()]
    for answer in (response(bytes(max_bytes + 1)), endless, declared):
        error = fetched({"/a.png": answer})
        assert isinstance(error, ServiceError)
        assert (error.code, error.param) == ("payload_too_large", "image")
        assert str(max_bytes) in error.message
    assert fetched({"/a.png": response(bytes(max_bytes))}) == bytes(max_bytes)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n12"])
def test_stalled_host_times_out(sent: bytes) -> None:
    start_s = time.monotonic()
    error = fetched({"/a.png": [sent]}, limit_s=0.2)
    assert "within 0.2 s" in refused(error)
    late = fetched({"/a.png": [sent]}, deadline_s=0.1)
    assert isinstance(late, DeadlineExceeded)
    assert time.monotonic() - start_s < 30


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nA\r\n\r\n",
        b"",
    ],
)
def test_broken_response_is_reported(sent: bytes) -> None:
    assert "or does not answer" in refused(fetched({"/a.png": sent}))


async def test_certificate_is_verified() -> None:
    names: list[str | None] = []

    def note_name(_socket: object, name: str | None, _context: object) -> None:
        names.append(name)

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("images.test").configure_cert(tls)
    tls.sni_callback = note_name
    async with await asyncio.start_server(ImageHost().serve, OUTSIDE, 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        error = await outcome(fetcher(f"*:{port}"), f"https://images.test:{port}")
    assert "no valid TLS certificate" in refused(error)
    assert names == ["images.test"]


def test_environment_proxy_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert fetched({"/a.png": response(BODY)}) == BODY


V4 = "93.184.215.14"
V6 = "2606:2800:21f::1"


async def resolve(addresses: list[str]) -> list[ResolveResult]:
    fetching = FileCalls(look_up=Names({"a.test": addresses}))
    resolver = CheckedResolver(partial(fetching.addresses, "test"), is_public)
    return await resolver.resolve("a.test", 80)


async def test_allowed_addresses_are_numbers() -> None:
    results = await resolve([V4, V6])
    assert [(result["host"], result["family"]) for result in results] == [
        (V4, socket.AF_INET),
        (V6, socket.AF_INET6),
    ]
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    assert {(result["port"], result["flags"]) for result in results} == {(80, numeric)}


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], [V4, "127.0.0.1"], ["::1", V6]])
async def test_forbidden_name_is_refused(addresses: list[str]) -> None:
    with pytest.raises(socket.gaierror):
        await resolve(addresses)


async def test_system_resolver() -> None:
    assert "127.0.0.1" in await FileCalls().addresses("test", "localhost")
    with pytest.raises(socket.gaierror):
        await FileCalls().addresses("test", "nothing.invalid")


async def test_hanging_names_leave_room() -> None:
    def look_up(host: str) -> list[str]:
        if host == "silent.test":
            answered.wait(60)
        return [V4]

    answered = threading.Event()
    resolver = FileCalls(look_up=look_up)
    attack = [
        asyncio.create_task(resolver.addresses("attacker", "silent.test")) for _ in range(100)
    ]
    done, waiting = await asyncio.wait(attack, timeout=0.2)
    assert (len(done), len(waiting)) == (84, 16)
    assert {type(task.exception()) for task in done} == {CallError}
    for task in waiting:
        task.cancel()
    with pytest.raises(CallError, match="host names being resolved"):  # the threads are still busy
        await resolver.addresses("attacker", "images.test")
    assert await resolver.addresses("polite", "images.test") == [V4]
    answered.set()
    await asyncio.gather(*waiting, return_exceptions=True)
    while True:
        with suppress(CallError):  # until a thread is free
            assert await resolver.addresses("attacker", "images.test") == [V4]
            break
        await asyncio.sleep(0.001)
