"""The types of settings that are model ids, URLs, hosts or devices.

A check raises `ValueError` with what is allowed.
"""

import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator

from service.images.url_rules import AllowedHost
from tasks.catalog import model_id_of
from wire.artifacts.devices import model_device

Names = tuple[str, ...]


def is_store_url(text: str) -> bool:
    return text.startswith(("redis://", "rediss://"))


def _check_store_url(url: str) -> str:
    """Return the URL of a Redis or Valkey, if it is one."""
    parts = urlsplit(url)
    is_store = parts.scheme in ("redis", "rediss") and parts.hostname and _has_port(parts)
    if not is_store or parts.query or not re.fullmatch(r"/?|/\d{1,5}", parts.path):
        raise ValueError("it must be redis(s)://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")
    return url


def _check_images_place(place: str) -> str:
    """Return a folder or the URL of a store."""
    return _check_store_url(place) if is_store_url(place) else place


def _check_http_url(url: str) -> str:
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


def _check_hosts(hosts: Names) -> Names:
    for host in hosts:
        AllowedHost.parse(host)
    return hosts


def _one_a_model(split: Callable[[str], tuple[object, ...]], problem: str) -> AfterValidator:
    """Return the check that `split`, which returns the model first, finds each model once."""

    def check(pairs: Names) -> Names:
        models = {split(pair)[0] for pair in pairs}
        if len(models) < len(pairs):
            raise ValueError(problem)
        return pairs

    return AfterValidator(check)


def _has_port(parts: SplitResult) -> bool:
    """Return True for a valid port or no port."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


ModelIds = Annotated[Names, AfterValidator(lambda names: tuple(map(model_id_of, names)))]
StoreUrl = Annotated[str, AfterValidator(_check_store_url)]
ImagesPlace = Annotated[str, AfterValidator(_check_images_place)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
UrlHosts = Annotated[Names, AfterValidator(_check_hosts)]
_TWO_URLS = "a model has two URLs; use the URL of a proxy that balances its replicas"
RunnerUrls = Annotated[Names, _one_a_model(split_runner_url, _TWO_URLS)]
Devices = Annotated[Names, _one_a_model(model_device, "a model has two devices")]
