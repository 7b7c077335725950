"""The connection of a client: its transport, its retries, and how it prepares an image.

Retried are Overloaded, NotReady and ConnectionFailed, after the seconds of Retry-After, or with
exponential backoff and jitter where the response has none. A delay that would end after the
deadline is not waited for.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import urlsplit

from tenacity import (
    BaseRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random_exponential,
)

from diptych_client.errors import ConnectionFailed, DiptychError, NotReady, Overloaded, new_error
from diptych_client.image_sources import ImageSource, downscaled, sent_image
from diptych_client.requests import (
    AnswerOptions,
    FieldValue,
    Request,
    StoredImage,
    TaskParameters,
    from_mapping,
    non_null_fields,
)
from diptych_client.transports.messages import Call, Operation

ResultT = TypeVar("ResultT")
SentT = TypeVar("SentT")
TransportT = TypeVar("TransportT")
RetryingT = TypeVar("RetryingT", bound=BaseRetrying)
Delay = Callable[[RetryCallState], float]
# Half of the delay is fixed, half random: 0.1 to 0.2 s first, then doubled, at most 10 s.
BACKOFF: Delay = wait_exponential(0.1, max=5) + wait_random_exponential(0.1, max=5)
DEFAULT_CONCURRENCY = 8  # images of predict_many in flight
Parameters = TaskParameters | Mapping[str, Any]
Options = AnswerOptions | Mapping[str, Any]


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
            raise new_error("invalid_request", message, "url")
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
        fields: Mapping[str, FieldValue | None],
        parameters: Parameters,
        options: Options,
    ) -> Request:
        parameters = from_mapping(TaskParameters, parameters)
        options = from_mapping(AnswerOptions, options)
        sent = sent_image(image, bgr)
        original = None
        smaller = None
        if self._max_pixels is not None and isinstance(sent, bytes):
            smaller = downscaled(sent, self._max_pixels)
        if smaller is not None and options.mask_format == "rle":
            message = "run lengths of an image sent smaller cannot be scaled: ask for polygons"
            raise new_error("invalid_request", message, "image")
        if smaller is not None:
            sent = smaller.data
            original = smaller.original
            if parameters.region is not None:
                x1, y1, x2, y2 = (smaller.scale * edge for edge in parameters.region)
                parameters = replace(parameters, region=(x1, y1, x2, y2))
        values = {name: value for name, value in fields.items() if value is not None}
        values |= non_null_fields(parameters, options)
        stored = image if isinstance(image, StoredImage) else None
        return Request(sent, values, stored, original)

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


def retrying(kind: type[RetryingT], timeout_s: float, max_retries: int) -> RetryingT:
    return kind(
        retry=retry_if_exception_type((Overloaded, NotReady, ConnectionFailed)),
        wait=_delay_s,
        stop=stop_after_attempt(max_retries + 1) | stop_before_delay(timeout_s),
        reraise=True,
    )


def _delay_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    retry_after = error.retry_after_s if isinstance(error, DiptychError) else None
    return BACKOFF(state) if retry_after is None else retry_after
