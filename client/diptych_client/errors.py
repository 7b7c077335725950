"""Errors of a call, the same over REST and gRPC: `DiptychError` and a class for each code.

`DiptychError` itself is raised for codes unknown to this client. `UnreadableFile` and
`ConnectionFailed` are never sent by the service.
"""

from dataclasses import dataclass

_CLASSES: dict[str, "type[DiptychError]"] = {}  # keyed by code


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Error as the service sends it; `param` names the offending field, if any."""

    code: str
    message: str
    param: str | None
    request_id: str


class DiptychError(Exception):
    """Base class of all errors of a call; `retry_after_s` are seconds to wait, if known."""

    def __init_subclass__(cls, code: str = "") -> None:
        _CLASSES[code] = cls

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
        return self.detail.param

    @property
    def request_id(self) -> str:
        """Id of the request in the service's log."""
        return self.detail.request_id


class InvalidRequest(DiptychError, ValueError, code="invalid_request"):
    """Unknown field or bad value."""


class UnreadableFile(DiptychError, OSError, code="unreadable_file"):
    """An image file that this client cannot read."""


class Unauthorized(DiptychError, code="unauthorized"):
    """Missing or wrong API key."""


class UnknownModel(DiptychError, code="unknown_model"):
    """The model is not served."""


class NotFound(DiptychError, code="not_found"):
    """No such stored image, or the service stores none."""


class ImageExpired(DiptychError, code="image_expired"):
    """A stored image is gone; send it again."""


class ImageTooLarge(DiptychError, code="image_too_large"):
    """The image has more pixels than the service allows."""


class PayloadTooLarge(DiptychError, code="payload_too_large"):
    """The request has more bytes than the service allows."""


class UnsupportedImage(DiptychError, code="unsupported_image"):
    """Not a readable JPEG, PNG or WebP file."""


class UnsupportedTask(DiptychError, code="unsupported_task"):
    """The model does not offer the task, or not with these parameters."""


class Overloaded(DiptychError, code="overloaded"):
    """A queue is full or a quota exhausted."""


class NotReady(DiptychError, code="not_ready"):
    """A model is starting or unreachable."""


class RunnerFailed(DiptychError, code="runner_failed"):
    """The request made its model's process end, twice; it is not repeated."""


class DeadlineExceeded(DiptychError, code="deadline_exceeded"):
    """The deadline passed, in the client or in the service."""


class InternalError(DiptychError, code="internal"):
    """A bug of the service, or a response that cannot be parsed."""


class ConnectionFailed(DiptychError, code="connection_failed"):
    """No connection, or a broken one."""


def error_from(detail: ErrorDetail, retry_after_s: float | None = None) -> DiptychError:
    return _CLASSES.get(detail.code, DiptychError)(detail, retry_after_s)


def new_error(
    code: str, message: str, param: str | None = None, request_id: str = ""
) -> DiptychError:
    return error_from(ErrorDetail(code, message, param, request_id))


def affects_every_image(error: DiptychError) -> bool:
    """Return True if the same request about another image would fail, too."""
    if isinstance(error, InvalidRequest):
        return error.param not in ("image", "region")  # a region may exceed it
    return isinstance(error, Unauthorized | UnknownModel | UnsupportedTask)


def connection_failed(reason: str, request_id: str, url: str, tried: str) -> DiptychError:
    message = f"{tried} at {url}: {reason}"
    return new_error("connection_failed", message, request_id=request_id)


def parse_retry_after_s(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date is not read."""
    if header is not None and header.isascii() and header.isdigit():
        return float(header)
    return None
