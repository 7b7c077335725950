"""The URLs in settings: which parts each may have. Raises `ValueError` with what is allowed."""

import re
from urllib.parse import SplitResult, urlsplit


def check_store_url(url: str) -> str:
    """Return the URL of a store of shared limits, if it is one."""
    parts = urlsplit(url)
    is_store = parts.scheme in ("redis", "rediss") and parts.hostname and _has_port(parts)
    if not is_store or parts.query or not re.fullmatch(r"/?|/\d{1,5}", parts.path):
        raise ValueError("it must be redis(s)://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")
    return url


def check_http_url(url: str) -> str:
    """Return the URL of another service, if it has no credentials and no query."""
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
    ):
        raise ValueError(
            "it must be an http(s) URL of host, port and path, without credentials and query"
        )
    return url


def split_runner_url(pair: str) -> tuple[str, str]:
    """Split `MODEL=http://HOST:PORT`."""
    model_id, _, url = pair.partition("=")
    parts = urlsplit(url)
    is_plain = (
        parts.scheme == "http" and parts.path in ("", "/") and not (parts.query or parts.fragment)
    )
    if not (
        model_id and is_plain and parts.hostname and "@" not in parts.netloc and _has_port(parts)
    ):
        raise ValueError(
            f"{pair!r} must be MODEL=http://HOST:PORT, such as florence-2-mini=http://10.0.0.1:3000"
        )
    return model_id, url.rstrip("/")


def _has_port(parts: SplitResult) -> bool:
    """Return True for a valid port and for none."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False
