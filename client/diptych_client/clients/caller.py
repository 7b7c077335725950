"""The connection of a client: its transport, retries, and how an image is prepared for it."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import urlsplit

from tenacity import BaseRetrying

from diptych_client.downscaling import downscaled
from diptych_client.errors import ErrorDetail, InvalidRequest
from diptych_client.geometry import ImageSize
from diptych_client.image_sources import ImageSource, ReadableFile, sent_image
from diptych_client.requests import (
    AnswerOptions,
    FieldValue,
    Request,
    StoredImage,
    TaskParameters,
    answer_options,
    task_parameters,
    task_request,
)
from diptych_client.retries import retrying
from diptych_client.transports.operations import Call, Operation

ResultT = TypeVar("ResultT")
SentT = TypeVar("SentT")
TransportT = TypeVar("TransportT")
DEFAULT_CONCURRENCY = 8  # images of predict_many in flight
Parameters = TaskParameters | Mapping[str, Any]
Options = AnswerOptions | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, and the size of an image that it has downscaled."""

    request: Request
    original: ImageSize | None


class Caller(Generic[TransportT]):
    """Connects to a URL and retries calls; a subclass names the kind of loop and of transports."""

    _retrying: ClassVar[type[BaseRetrying]]
    _transports: ClassVar[tuple[type[Any], type[Any]]]  # REST, gRPC

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 3,
        max_pixels: int | None = None,
    ) -> None:
        rest, grpc = self._transports
        parts = urlsplit(url)
        is_grpc = parts.scheme in ("grpc", "grpcs") and parts.port and parts.path in ("", "/")
        if not parts.netloc or not (is_grpc or parts.scheme in ("http", "https")):
            allowed = "http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
            message = f"the URL of the service must be {allowed}, got {url!r}"
            raise InvalidRequest(ErrorDetail("invalid_request", message, "url", ""))
        self._transport: TransportT
        if is_grpc:
            self._transport = grpc(parts.netloc, api_key, is_secure=parts.scheme == "grpcs")
        else:
            self._transport = rest(url, api_key)
        self._shown_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._max_pixels = max_pixels

    def _prepare(
        self,
        image: ImageSource,
        bgr: bool,
        chosen: Mapping[str, FieldValue | None],
        parameters: Parameters,
        options: Options,
    ) -> Prepared:
        asked = task_parameters(parameters)
        sent = sent_image(image, bgr)
        smaller = None
        if self._max_pixels is not None and isinstance(sent, bytes):
            name = str(image) if isinstance(image, str | Path) else "the image"
            if isinstance(image, ReadableFile):
                name = str(getattr(image, "name", name))
            smaller = downscaled(sent, self._max_pixels, name)
        if smaller is not None:
            sent = smaller.data
            if asked.region is not None:
                x1, y1, x2, y2 = (smaller.scale * edge for edge in asked.region)
                asked = replace(asked, region=(x1, y1, x2, y2))
        request = task_request(sent, chosen, asked, answer_options(options))
        request = replace(request, stored=image if isinstance(image, StoredImage) else None)
        return Prepared(request, None if smaller is None else smaller.original)

    def _about(self, image: ImageSource, fields: Mapping[str, FieldValue]) -> Request:
        stored = image if isinstance(image, StoredImage) else None
        return Request(sent_image(image), fields, stored)

    def _call(
        self,
        operation: Operation[ResultT],
        request: Request,
        send: Callable[[Call[ResultT]], SentT],
    ) -> SentT:
        """Return what `send` returns, for asyncio an awaitable of it."""
        deadline_s = time.monotonic() + self._timeout_s
        call = Call(operation, request, uuid.uuid4().hex, deadline_s, self._shown_url)
        retry: Any = retrying(self._retrying, self._timeout_s, self._max_retries)
        sent: SentT = retry(send, call)
        return sent
