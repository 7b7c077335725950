"""URLs of images: which are allowed, and the addresses that their hosts may have.

A URL is parsed only here, and the URL that is opened is built from the checked parts, so that no
second parser can see another host in it. Numbers that some resolvers accept as addresses
(2130706433, 0x7f.1, 0177.0.0.1) are not host names. Opens no URL and resolves no name.
"""

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
# Outside the public internet. Source: IANA's registries of special-purpose addresses, and of
# multicast. Copied, because `ipaddress.is_global` differs between Python 3.11 and 3.13 and includes
# multicast.
_SPECIAL_IPV4 = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24"
    " 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24"
    " 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
    " 168.63.129.16/32"  # Azure's platform services. Source: Microsoft Learn
)
_SPECIAL_IPV4_NETWORKS = list(map(ipaddress.IPv4Network, _SPECIAL_IPV4.split()))
# Everything outside it is special: mapped and translated IPv4, local, multicast. Source: IANA, IPv6
# Global Unicast.
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
# IETF's protocols with Teredo, documentation twice, 6to4, AS112
_SPECIAL_IPV6 = "2001::/23 2001:db8::/32 3fff::/20 2002::/16 2620:4f:8000::/48"
_SPECIAL_IPV6_NETWORKS = list(map(ipaddress.IPv6Network, _SPECIAL_IPV6.split()))


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


def is_public(address: str) -> bool:
    ip = ip_address(address)
    if ip is None:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in _SPECIAL_IPV4_NETWORKS)
    return ip in _UNICAST_IPV6 and not any(ip in network for network in _SPECIAL_IPV6_NETWORKS)
