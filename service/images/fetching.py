"""Reads images from URLs that clients send, from the public internet only.

Names are resolved once for each connection, inside it: the addresses that were checked are those that are connected to.
Redirects are followed here and checked like the first URL. Nothing is sent but the request: no cookie, no credential.
What a host did wrong is told without what its name was resolved to, and no URL is logged.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin

import aiohttp

from service.errors import DeadlineExceeded, InvalidRequest, PayloadTooLarge
from service.images.host_addresses import CheckedResolver, NoAllowedAddress, Resolver, is_public
from service.images.url_rules import AllowedHost, CheckedUrl, ImageUrl, check_url

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
# Bytes that are to be unpacked could be far more than were sent.
_HEADERS = {"Accept": "image/jpeg, image/png, image/webp", "Accept-Encoding": "identity", "User-Agent": "diptych"}


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one image may take."""

    max_bytes: int
    timeout_s: float


class ImageFetcher:
    """Reads images from the allowed hosts. `is_allowed` says to which addresses it may connect."""

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

    async def fetch(self, url: ImageUrl, deadline_s: float) -> bytes:
        """Return the bytes at a URL; raise `InvalidRequest`, `PayloadTooLarge` or `DeadlineExceeded`.

        `deadline_s` is on the clock of `time.monotonic()`.
        """
        try:
            async with asyncio.timeout(min(self._limits.timeout_s, deadline_s - time.monotonic())):
                return await self._follow(check_url(url.text, self._allowed))
        except TimeoutError as error:
            if time.monotonic() >= deadline_s:
                raise DeadlineExceeded("the image did not come from its URL in the time of the request") from error
            raise _failed(f"the image did not come from its URL within {self._limits.timeout_s:g} s") from error

    async def _follow(self, url: CheckedUrl) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                answer = await self._get(url)
            except (aiohttp.ClientError, OSError) as error:
                raise _failed(_reason(error, url)) from error
            if isinstance(answer, bytes):
                return answer
            url = check_url(_target(url, answer), self._allowed)
        raise _failed(f"the image's URL leads on more than {_MAX_REDIRECTS} times")

    async def _get(self, url: CheckedUrl) -> bytes | str:
        """Return the bytes at a URL, or where it leads on to."""
        if url.is_of_address and not self._is_allowed(url.host):
            raise NoAllowedAddress(url.host)
        resolver = CheckedResolver(self._resolver, self._is_allowed)
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True)
        async with (
            aiohttp.ClientSession(
                connector=connector,
                headers=_HEADERS,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),  # that of `fetch`
            ) as session,
            session.get(url.text, allow_redirects=False) as response,
        ):
            if response.status in _REDIRECTS:
                return response.headers.get("Location", "")
            return await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise _failed(f"the host of the image's URL answers with status {response.status}; 200 is taken")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _failed("the host of the image's URL sends it compressed, which it was asked not to do")
        body = bytearray()
        self._check_size(response.content_length or 0)
        async for chunk in response.content.iter_any():
            body += chunk
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._limits.max_bytes:
            message = f"the image at the URL is over {self._limits.max_bytes} bytes, the most that is allowed"
            raise PayloadTooLarge(message, "image")


def _target(url: CheckedUrl, location: str) -> str:
    """Return where a redirect leads to; what cannot be joined is for `check_url` to refuse."""
    try:
        return urljoin(url.text, location)
    except ValueError:
        return location


def _reason(error: Exception, url: CheckedUrl) -> str:
    # One text for all of these, lest a client learns which internal names there are.
    if isinstance(error, aiohttp.ClientConnectorDNSError | NoAllowedAddress):
        return f"the host of the image's URL, {url.host[:80]}, has no address, or not only public ones"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return f"the host of the image's URL, {url.host[:80]}, has no certificate that is accepted"
    return f"the host of the image's URL, {url.host[:80]}, cannot be reached, or broke off"


def _failed(message: str) -> InvalidRequest:
    return InvalidRequest(message, "image")
