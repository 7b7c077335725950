"""Reads the images of tasks: `data:` URLs, http(s) URLs, files of Label Studio.

A file of Label Studio (`/data/upload/…`, `/data/local-files/?d=…`, `/data/…`) is fetched from the
operator's DIPTYCH_LABEL_STUDIO_URL alone, with the token that came with the request: a user sees
what the token's owner sees, and the token goes nowhere else. Tokens are never stored or logged.
Source: HumanSignal/label-studio label_studio/jwt_auth (personal tokens are exchanged for short
ones; legacy tokens).
"""

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import Self
from urllib.parse import quote, urlsplit

import aiohttp

from service.admission.places import RequestContext
from service.errors import InvalidRequest
from service.http.body import parse_image
from service.images.decoding import in_thread
from service.images.fetching import ImageFetcher
from service.images.inputs import MAX_URL_CHARS, AllowedHost, ImageUrl
from service.inference.core import Core
from service.settings import Settings, variable
from tasks.errors import shown

_PORTS = {"http": 80, "https": 443}
_SAFE_IN_PATHS = "/?&=%+,:;@~!$'()*"
_LEGACY_TOKEN = re.compile(r"[0-9a-f]{40}")
_PERSONAL_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)  # a JWT, to be exchanged
_ACCESS_TOKEN = re.compile(r"[!-~]{1,4096}")  # fits in a header
_SETTING = variable("label_studio_url")


def is_token(text: str) -> bool:
    return bool(_LEGACY_TOKEN.fullmatch(text) or _PERSONAL_TOKEN.fullmatch(text))


@dataclass(frozen=True, slots=True)
class LabelStudioHost:
    """The operator's Label Studio."""

    url: str  # has no slash at its end
    fetcher: ImageFetcher
    timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the operator's host, if one is set; its address may be private."""
        if settings.label_studio_url is None:
            return None
        parts = urlsplit(settings.label_studio_url)
        allowed = AllowedHost(str(parts.hostname), parts.port or _PORTS[parts.scheme])
        fetcher = ImageFetcher(
            [allowed], settings.max_body_bytes, settings.url_timeout_s, lambda _address: True
        )
        return cls(settings.label_studio_url.rstrip("/"), fetcher, settings.url_timeout_s)

    @property
    def origin(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def path_of(self, source: str) -> str | None:
        """Return the path of a file of this Label Studio, or None for any other source."""
        if source.startswith("/") and not source.startswith("//"):
            return source
        return source.removeprefix(self.origin) if source.startswith(f"{self.origin}/") else None

    async def authorization(self, token: str) -> str:
        """Return the header for a user's token; raise `InvalidRequest` if it is not accepted."""
        if _LEGACY_TOKEN.fullmatch(token):
            return f"Token {token}"
        if not is_token(token):
            problem = "the image is a file of Label Studio, and no access token of it was sent"
            advice = "enter KEY:TOKEN as the password of the backend's basic authentication"
            raise InvalidRequest(f"{problem}; {advice}", "image")
        access = await self._exchanged(token)
        if not isinstance(access, str) or not _ACCESS_TOKEN.fullmatch(access):
            raise InvalidRequest("Label Studio does not accept the access token", "image")
        return f"Bearer {access}"

    async def _exchanged(self, token: str) -> object:
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        cookies = aiohttp.DummyCookieJar()
        url = f"{self.url}/api/token/refresh/"
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, cookie_jar=cookies) as session,
                session.post(url, json={"refresh": token}, allow_redirects=False) as response,
            ):
                return (await response.json())["access"] if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, LookupError) as error:
            problem = f"Label Studio at {_SETTING} does not exchange the access token"
            raise InvalidRequest(problem, "image") from error


class TaskImages:
    """Reads the images of one call."""

    def __init__(self, core: Core, host: LabelStudioHost | None, token: str) -> None:
        self._core = core
        self._host = host
        self._token = token
        self._authorization: str | None = None
        self._exchange = asyncio.Lock()  # the token is exchanged once per call

    async def read(self, source: object, context: RequestContext) -> bytes:
        """Return the image file that a task names; raise `ServiceError`.

        A fetched file is counted in the memory of `context`; a decoded one with its request.
        """
        if not isinstance(source, str) or not source:
            raise InvalidRequest(f"the task's image is {shown(source)}; it must be a URL", "image")
        path = None if self._host is None else self._host.path_of(source)
        if self._host is None or path is None:
            if source.startswith("/"):
                problem = f"the image is a file of Label Studio, and {_SETTING} is not set"
                raise InvalidRequest(problem, "image")
            image = await in_thread(parse_image, source)
            return image if isinstance(image, bytes) else await self._core.fetched(image, context)
        if len(path) > MAX_URL_CHARS:
            raise InvalidRequest(f"the image's path exceeds {MAX_URL_CHARS} characters", "image")
        url = ImageUrl(self._host.origin + quote(path, safe=_SAFE_IN_PATHS))
        authorization = await self._header(self._host)
        hold = partial(self._core.places.hold, context)
        return await self._host.fetcher.fetch(url, context, hold, authorization)

    async def _header(self, host: LabelStudioHost) -> str:
        async with self._exchange:
            if self._authorization is None:
                self._authorization = await host.authorization(self._token)
            return self._authorization
