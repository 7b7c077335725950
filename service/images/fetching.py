"""Fetches images from URLs in requests, from the public internet only.

A name is resolved once per connection, and the connection goes to an address that was checked.
Redirects are followed here and checked like the first URL. No cookies are sent, and an
Authorization only if the caller gives one. Errors name no resolved addresses; URLs are not logged.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp

from service.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from service.images.host_addresses import (
    CheckedResolver,
    NoAllowedAddress,
    Resolver,
    is_public,
)
from service.images.url_rules import AllowedHost, CheckedUrl, ImageUrl, check_url

_MAX_REDIRECTS = 3
_CERTIFICATE_ERRORS = (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
# identity: a compressed body could expand far beyond the limit on its size. */*: some hosts (Label
# Studio 1.23) answer 406 without it.
_HEADERS = {
    "Accept": "image/jpeg, image/png, image/webp, */*;q=0.1",
    "Accept-Encoding": "identity",
    "User-Agent": "diptych",
}


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits of one fetch."""

    max_bytes: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Receiver:
    """The request that an image is fetched for."""

    deadline_s: float  # time.monotonic()
    client: str
    hold: Callable[[int], None]  # counts received bytes; raises `Overloaded`
    authorization: str | None = None  # sent to every allowed host


class ImageFetcher:
    """Fetches images from the allowed hosts; `is_allowed` decides on each address of a host."""

    def __init__(
        self,
        allowed: Sequence[AllowedHost],
        limits: FetchLimits,
        resolver: Resolver,
        is_allowed: Callable[[str], bool] = is_public,
    ) -> None:
        self._allowed = allowed
        self._limits = limits
        self._resolver = resolver
        self._is_allowed = is_allowed

    async def fetch(self, url: ImageUrl, receiver: Receiver) -> bytes:
        """Return the body at a URL; raise a `ServiceError`."""
        try:
            async with asyncio.timeout(
                min(self._limits.timeout_s, receiver.deadline_s - time.monotonic())
            ):
                return await self._follow(check_url(url.text, self._allowed), receiver)
        except TimeoutError as error:
            if time.monotonic() >= receiver.deadline_s:
                raise DeadlineExceeded(
                    "the image could not be fetched from its URL before the deadline"
                ) from error
            raise _failed(
                f"the image could not be fetched from its URL within {self._limits.timeout_s:g} s"
            ) from error

    async def _follow(self, url: CheckedUrl, receiver: Receiver) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                answer = await self._get(url, receiver)
            except (aiohttp.ClientError, OSError) as error:
                problem = "is unreachable or closed the connection"
                # One text for all of these: a client must not learn which internal names exist.
                if isinstance(error, aiohttp.ClientConnectorDNSError | NoAllowedAddress):
                    problem = "has no address or one that is not public"
                elif isinstance(error, _CERTIFICATE_ERRORS):
                    problem = "has no valid TLS certificate"
                host = f"the host of the image's URL, {url.host[:80]},"
                raise _failed(f"{host} {problem}") from error
            if isinstance(answer, bytes):
                return answer
            url = check_url(_target(url, answer), self._allowed)
        raise _failed(f"the image's URL redirects more than {_MAX_REDIRECTS} times")

    async def _get(self, url: CheckedUrl, receiver: Receiver) -> bytes | str:
        """Return the body at a URL, or the location of its redirect."""
        if url.is_ip_address and not self._is_allowed(url.host):
            raise NoAllowedAddress(url.host)
        resolver = CheckedResolver(self._resolver, self._is_allowed, receiver.client)
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True)
        authorization = (
            {} if receiver.authorization is None else {"Authorization": receiver.authorization}
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                headers=_HEADERS | authorization,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),  # no timeout here: `fetch` has one
            ) as session,
            session.get(url.text, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECT_STATUSES:
                return response.headers.get("Location", "")
            return await self._read(response, receiver.hold)

    async def _read(self, response: aiohttp.ClientResponse, hold: Callable[[int], None]) -> bytes:
        if response.status != 200:
            raise _failed(
                f"the host of the image's URL answers with status {response.status}; it must be 200"
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed(
                "the host of the image's URL sends it with a Content-Encoding; it must send it"
                " without"
            )
        body = bytearray()
        self._check_size(response.content_length or 0)
        async for chunk in response.content.iter_any():
            hold(len(chunk))
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_bytes:
            allowed = f"the maximum of {self._limits.max_bytes} bytes"
            raise PayloadTooLarge(f"the image at the URL is larger than {allowed}", "image")


def _target(url: CheckedUrl, location: str) -> str:
    """Return a redirect's URL, or an invalid one as it is, for `check_url` to refuse."""
    try:
        return urljoin(url.text, location)
    except ValueError:
        return location


def _failed(message: str) -> InvalidRequest:
    return InvalidRequest(message, "image")
