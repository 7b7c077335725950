"""The connection of a client: its transport, its retries, and how it prepares an image.

Retried are Overloaded, NotReady and ConnectionFailed, after the seconds of Retry-After, or with
exponential backoff and jitter where the response has none. A delay that would end after the
deadline is not waited for.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar
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

from diptych_client.downscaling import downscaled
from diptych_client.errors import (
    ConnectionFailed,
    DiptychError,
    ErrorDetail,
    InvalidRequest,
    NotReady,
    Overloaded,
)
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
from diptych_client.transports.operations import Call, Operation

if TYPE_CHECKING:
    from rich.progress import Progress

PassedT = TypeVar("PassedT")
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
        fields: Mapping[str, FieldValue | None],
        parameters: Parameters,
        options: Options,
    ) -> Prepared:
        parameters = task_parameters(parameters)
        sent = sent_image(image, bgr)
        smaller = None
        if self._max_pixels is not None and isinstance(sent, bytes):
            name = str(image) if isinstance(image, str | Path) else "the image"
            if isinstance(image, ReadableFile):
                name = str(getattr(image, "name", name))
            smaller = downscaled(sent, self._max_pixels, name)
        if smaller is not None:
            sent = smaller.data
            if parameters.region is not None:
                x1, y1, x2, y2 = (smaller.scale * edge for edge in parameters.region)
                parameters = replace(parameters, region=(x1, y1, x2, y2))
        request = task_request(sent, fields, parameters, answer_options(options))
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


def retrying(kind: type[RetryingT], timeout_s: float, max_retries: int) -> RetryingT:
    """Return the retry loop of one call, which starts now."""
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


class Bar:
    """A progress bar on stderr, or none; of images without a length the total is unknown."""

    def __init__(self, images: Iterable[object], is_shown: bool) -> None:
        self._total = len(images) if isinstance(images, Sized) else None
        self._is_shown = is_shown
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._is_shown:
            # imported when needed: it takes longer than the rest of the client
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True))
            self._progress.add_task("", total=self._total)
            self._progress.start()
        return self

    def passed(self, result: PassedT) -> PassedT:
        """Count a result and return it."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
