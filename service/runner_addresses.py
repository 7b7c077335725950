"""Where the runners of a model listen, if not on this host: URLs by the settings, a replica at each of their addresses.

florence-2-mini=http://10.0.0.1:3000,florence-2-mini=http://encoders.example:3000
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.host_addresses import Resolver, ip_address

logger = logging.getLogger(__name__)

_HTTP_PORT = 80


@dataclass(frozen=True, slots=True)
class RunnerUrl:
    """One URL of a model's encoders or decoders."""

    model_id: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "RunnerUrl":
        """Read `model=http://host:port`; raise `ValueError`."""
        model_id, _, url = text.partition("=")
        with suppress(ValueError):  # of a host or port that is none
            parts = urlsplit(url)
            is_plain = parts.scheme == "http" and parts.path in ("", "/") and not (parts.query or parts.fragment)
            if model_id and is_plain and parts.hostname and "@" not in parts.netloc:
                return cls(model_id, parts.hostname, parts.port or _HTTP_PORT)
        raise ValueError(f"{text!r} is no pair of a model and a URL such as a-model=http://10.0.0.1:3000")


def url_of(host: str, port: int) -> str:
    """Return the URL of a host, which may be an IPv6 address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class RunnerAddresses:
    """The addresses of some URLs, as their names resolve now."""

    def __init__(self, urls: Sequence[RunnerUrl], resolver: Resolver) -> None:
        self._urls = urls
        self._resolver = resolver
        self._known: dict[str, Sequence[str]] = {}  # of a name
        self._unresolved = set[str]()  # names; said once

    @property
    def are_fixed(self) -> bool:
        """Say whether all are numbers."""
        return all(ip_address(url.host) for url in self._urls)

    async def current(self) -> frozenset[str]:
        """Return the URL of every replica; a name that cannot be resolved keeps the addresses that it had."""
        names = {url.host for url in self._urls if not ip_address(url.host)}
        await asyncio.gather(*map(self._look_up, names))
        return frozenset(url_of(host, url.port) for url in self._urls for host in self._hosts(url))

    def _hosts(self, url: RunnerUrl) -> Iterable[str]:
        return (url.host,) if ip_address(url.host) else self._known.get(url.host, ())

    async def _look_up(self, name: str) -> None:
        try:
            self._known[name] = await self._resolver.addresses(name)
            self._unresolved.discard(name)
        except (OSError, UnicodeError) as error:  # the latter: it cannot be a name
            if name not in self._unresolved:
                self._unresolved.add(name)
                num_known = len(self._known.get(name, ()))
                logger.warning("%s cannot be resolved, its %d addresses stay: %s", name, num_known, error)
