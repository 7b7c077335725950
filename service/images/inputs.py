"""Images as requests name them: a file, the URL of one, or the id of a stored one.

A URL is parsed only here, and the URL that is opened is built from the checked parts, so that no
second parser can see another host in it. Numbers that some resolvers accept as addresses
(2130706433, 0x7f.1, 0177.0.0.1) are not host names. Opens no URL and resolves no name.

The id of a stored image is `img_` and 48 hexadecimal digits:

    32 digits    a MAC of the API key and the image's content: the name of its file
    16 digits    a MAC of the API key and the name: the id was made by this service for this key

The same bytes of a key have the same id, which reveals neither. An id of another key and a made-up
one cannot be told apart; one of the key whose image is gone is known to have been valid.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from service.errors import InvalidRequest

MAX_URL_CHARS = 2048
# RFC 3986 without userinfo, in ASCII without spaces, control characters and backslashes.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:[/?][!\x22$-\[\]-~]*)?)(?:#[!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,  # ASCII: else the Kelvin sign matches k
)
_NAME = re.compile(
    r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?"
)
_ALLOWED = re.compile(r"(?P<host>[^:]+|\[.+\])(?::(?P<port>[0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_ID = re.compile(r"img_([0-9a-f]{32})([0-9a-f]{16})")
ID_PREFIX = "img_"
ID_CHARS = len(ID_PREFIX) + 48


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The URL of an image, as sent by the client."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageHandle:
    """The id of a stored image, as sent by the client."""

    text: str


ImageInput = bytes | ImageUrl | ImageHandle


def file_or_handle(data: bytes) -> bytes | ImageHandle:
    """Return a file, or the id in its place, which no image file begins with."""
    if data.startswith(ID_PREFIX.encode()) and len(data) <= ID_CHARS:
        return ImageHandle(data.decode(errors="replace"))
    return data


@dataclass(frozen=True, slots=True)
class CheckedUrl:
    """An allowed URL, whose host's addresses are still to be checked."""

    scheme: str
    host: str  # a name or an address, lower case
    port: int
    path: str  # includes the query

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        slash = "" if self.path.startswith("/") else "/"
        return f"{self.scheme}://{host}:{self.port}{slash}{self.path}"


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """An allowed host of images, `*` for any; without a port, those of http and https."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        match = _ALLOWED.fullmatch(text.lower())
        host = match["host"].strip("[]") if match else ""
        if match is None or not (host == "*" or _is_host(host)):
            raise ValueError(
                f"{text!r} must be a host name, an IP address or *, with an optional :PORT"
            )
        return cls(host, int(match["port"]) if match["port"] else None)

    def allows(self, url: CheckedUrl) -> bool:
        port = _PORTS[url.scheme] if self.port is None else self.port
        return self.host in ("*", url.host) and port == url.port

    def __str__(self) -> str:
        return self.host if self.port is None else f"{self.host}:{self.port}"


def check_url(text: str, allowed: Sequence[AllowedHost]) -> CheckedUrl:
    """Return the parts of an allowed URL; raise `InvalidRequest` for any other."""
    match = _URL.fullmatch(text) if len(text) <= MAX_URL_CHARS else None
    host = match["host"].strip("[]").lower() if match else ""
    if match is None or not _is_host(host):
        allowed_url = f"an http(s) URL in ASCII without credentials, of at most {MAX_URL_CHARS}"
        raise InvalidRequest(f"image must be {allowed_url} characters", "image")
    scheme = match["scheme"].lower()
    url = CheckedUrl(scheme, host, int(match["port"] or _PORTS[scheme]), match["path"])
    if not any(allowed_host.allows(url) for allowed_host in allowed):
        hosts = ", ".join(map(str, allowed))
        problem = f"image is a URL at {url.host[:80]}, port {url.port}"
        raise InvalidRequest(f"{problem}; the allowed hosts are {hosts}", "image")
    return url


def _is_host(host: str) -> bool:
    return ip_address(host) is not None or _NAME.fullmatch(host) is not None


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address in its usual notation without a zone; return None for other text."""
    try:
        return ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None


class HandleIds:
    """Makes and checks ids with a secret that all gateways of a store share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, owner: str, data: bytes) -> str:
        name = self._mac("content", owner, hashlib.sha256(data).hexdigest(), 32)
        return f"{ID_PREFIX}{name}{self._mac('name', owner, name, 16)}"

    def name(self, owner: str, handle: ImageHandle) -> str | None:
        """Return the name in an id of an API key, or None for any other id."""
        match = _ID.fullmatch(handle.text)
        if match is None:
            return None
        expected = self._mac("name", owner, match[1], 16)
        return match[1] if hmac.compare_digest(expected, match[2]) else None

    def _mac(self, purpose: str, owner: str, text: str, num_digits: int) -> str:
        message = f"{purpose} {owner} {text}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:num_digits]
