"""Which URLs of images are read: scheme, host and port. It reads none and resolves no name.

A URL is taken apart here and nowhere else: what is connected to is put together again from the checked parts, so that
no second parser can see another host in it. Numbers that some resolvers take for addresses (2130706433, 0x7f.1,
0177.0.0.1) are no host names here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service.errors import InvalidRequest
from service.images.host_addresses import ip_address

_MAX_CHARS = 2048
# RFC 3986 without userinfo, in ASCII without spaces, control characters and backslashes.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:[/?][!\x22$-\[\]-~]*)?)(?:#[!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,  # without ASCII, a Kelvin sign is a k
)
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_ALLOWED = re.compile(r"(?P<host>[^:]+|\[.+\])(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A URL that was sent instead of an image, as it was sent."""

    text: str


GivenImage = bytes | ImageUrl


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """A URL that may be read, if its host has only addresses that may be."""

    scheme: str
    host: str  # a name or an address, lower case
    port: int
    path: str  # with the query

    @property
    def text(self) -> str:
        """The URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{'' if self.path.startswith('/') else '/'}{self.path}"

    @property
    def is_of_address(self) -> bool:
        """Whether the host is an address, and no name."""
        return ip_address(self.host) is not None


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """A host that images are read from, `*` for any; without a port, those of http and https."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host` or `host:port`; raise `ValueError`."""
        match = _ALLOWED.fullmatch(text.lower())
        host = match["host"].strip("[]") if match else ""
        if match is None or not (host == "*" or _is_host(host)):
            raise ValueError(f"{text!r} is no host name, and not *; a port may follow after a colon")
        return cls(host, int(match["port"]) if match["port"] else None)

    def allows(self, url: CheckedUrl) -> bool:
        """Say whether the URL may be read."""
        port = _PORTS[url.scheme] if self.port is None else self.port
        return self.host in ("*", url.host) and port == url.port

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


def check_url(text: str, allowed: Sequence[AllowedHost]) -> CheckedUrl:
    """Return the parts of a URL that may be read; raise `InvalidRequest`."""
    match = _URL.fullmatch(text) if len(text) <= _MAX_CHARS else None
    host = match["host"].strip("[]").lower() if match else ""
    if match is None or not _is_host(host):
        raise _refused(
            f"image is no URL of http or https, in ASCII, without a user, of at most {_MAX_CHARS} characters"
        )
    scheme = match["scheme"].lower()
    url = CheckedUrl(scheme, host, int(match["port"] or _PORTS[scheme]), match["path"])
    if not any(each.allows(url) for each in allowed):
        hosts = ", ".join(map(str, allowed))
        raise _refused(f"image is a URL of {url.host[:80]} port {url.port}; this service reads from {hosts}")
    return url


def _is_host(host: str) -> bool:
    return ip_address(host) is not None or _NAME.fullmatch(host) is not None


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, "image")
