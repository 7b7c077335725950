"""Errors of a call, the same over REST and gRPC.

DiptychError              code, message, param, request_id; itself only for codes unknown to this
                          client
├── InvalidRequest        unknown field or bad value; also a `ValueError`
├── UnreadableFile        an image file that this client cannot read; never sent by the service
├── Unauthorized          missing or wrong API key
├── UnknownModel          the model is not served
├── NotFound              no such stored image, or the service stores none
├── ImageExpired          a stored image is gone; send it again
├── ImageTooLarge         the image has more pixels than the service allows
├── PayloadTooLarge       the request has more bytes than the service allows
├── UnsupportedImage      not a readable JPEG, PNG or WebP file
├── UnsupportedTask       the model does not offer the task, or not with these parameters
├── Overloaded            a queue is full or a quota exhausted; retry_after_s: seconds to wait
├── NotReady              a model is starting or unreachable
├── DeadlineExceeded      the deadline passed, in the client or in the service
├── InternalError         a bug of the service, or a response that cannot be parsed
└── ConnectionFailed      no connection, or a broken one; never sent by the service
"""

from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Error as the service sends it; `param` names the offending field, if any."""

    code: str
    message: str
    param: str | None
    request_id: str


class DiptychError(Exception):
    """Base class of all errors of a call."""

    def __init__(self, detail: ErrorDetail, retry_after_s: float | None = None) -> None:
        super().__init__(f"{detail.code}: {detail.message}")
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """Name of the error in the API, such as `unknown_model`."""
        return self.detail.code

    @property
    def message(self) -> str:
        """Text without the code: what is wrong, what was given, what is allowed."""
        return self.detail.message

    @property
    def param(self) -> str | None:
        """Name of the offending field, if any."""
        return self.detail.param

    @property
    def request_id(self) -> str:
        """Id of the request in the service's log."""
        return self.detail.request_id


class InvalidRequest(DiptychError, ValueError):
    """Unknown field or bad value."""


class UnreadableFile(DiptychError, OSError):
    """An image file that this client cannot read."""


class Unauthorized(DiptychError):
    """Missing or wrong API key."""


class UnknownModel(DiptychError):
    """The model is not served."""


class NotFound(DiptychError):
    """No such stored image, or the service stores none."""


class ImageExpired(DiptychError):
    """A stored image is gone; send it again."""


class ImageTooLarge(DiptychError):
    """The image has more pixels than the service allows."""


class PayloadTooLarge(DiptychError):
    """The request has more bytes than the service allows."""


class UnsupportedImage(DiptychError):
    """Not a readable JPEG, PNG or WebP file."""


class UnsupportedTask(DiptychError):
    """The model does not offer the task, or not with these parameters."""


class Overloaded(DiptychError):
    """A queue is full or a quota exhausted."""


class NotReady(DiptychError):
    """A model is starting or unreachable."""


class DeadlineExceeded(DiptychError):
    """The deadline passed, in the client or in the service."""


class InternalError(DiptychError):
    """A bug of the service, or a response that cannot be parsed."""


class ConnectionFailed(DiptychError):
    """No connection, or a broken one."""


# errors of these fields depend on the image: a region may exceed a small one
_IMAGE_FIELDS = ("image", "region")
_CLASSES: dict[str, type[DiptychError]] = {
    "invalid_request": InvalidRequest,
    "unreadable_file": UnreadableFile,
    "unauthorized": Unauthorized,
    "unknown_model": UnknownModel,
    "not_found": NotFound,
    "image_expired": ImageExpired,
    "image_too_large": ImageTooLarge,
    "payload_too_large": PayloadTooLarge,
    "unsupported_image": UnsupportedImage,
    "unsupported_task": UnsupportedTask,
    "overloaded": Overloaded,
    "not_ready": NotReady,
    "deadline_exceeded": DeadlineExceeded,
    "internal": InternalError,
    "connection_failed": ConnectionFailed,
}


def error_from(detail: ErrorDetail, retry_after_s: float | None = None) -> DiptychError:
    """Return an error of the class for the code."""
    return _CLASSES.get(detail.code, DiptychError)(detail, retry_after_s)


# texts of errors at the other interface's port, and what to do
_WRONG_PORT = {
    "wrong_version_number": "does the service serve TLS? without it its URL is http://HOST:PORT",
    "illegal request line": "is this the gRPC port? its URL is grpc://HOST:PORT",
    "http1": "is this the REST port? its URL is http://HOST:PORT",
}


def affects_every_image(error: Exception) -> bool:
    """Return True if the same request about another image would fail, too."""
    if isinstance(error, InvalidRequest):
        return error.param not in _IMAGE_FIELDS
    return isinstance(error, Unauthorized | UnknownModel | UnsupportedTask)


def connection_failed(reason: str, request_id: str, url: str = "", tried: str = "") -> DiptychError:
    """Return the error of an attempt on a service; its message names URL, attempt and next step."""
    for sign, hint in _WRONG_PORT.items():
        if sign in reason.lower():
            reason = f"{reason} ({hint})"
    place = f"{tried} at {url}: " if url else ""
    step = f"; `diptych --url {url} doctor` finds the cause" if url else ""
    message = f"{place}{reason}{step}"
    return error_from(ErrorDetail("connection_failed", message, None, request_id))


def deadline_exceeded(timeout_s: float, request_id: str) -> DiptychError:
    message = f"no response within the remaining {timeout_s:.3g} s"
    return error_from(ErrorDetail("deadline_exceeded", message, None, request_id))


def parse_retry_after_s(header: str | None, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return None
