"""What a call can end with other than an answer; the same over REST and gRPC.

DiptychError              has code, message, param, request_id; itself only for codes that this client does not know
├── InvalidRequest        an unknown field or a bad value
├── Unauthorized          no API key, or a wrong one
├── UnknownModel          no such model is served
├── ImageTooLarge         the image has more pixels than the service allows
├── PayloadTooLarge       the request has more bytes than the service allows
├── UnsupportedImage      not an image that the service can read
├── UnsupportedTask       the model does not offer the task, or not this variant of it
├── Overloaded            too much is at work there; retry_after_s says when to come back
├── NotReady              a part of the service is not there
├── DeadlineExceeded      the time of the call ran out, here or there
├── InternalError         a defect of the service, or an answer that cannot be read
└── ConnectionFailed      nobody answers there; the only one that the service never sends
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What was wrong, what was given, what is allowed; `param` names the field at fault, where one is."""

    code: str
    message: str
    param: str | None
    request_id: str


class DiptychError(Exception):
    """A call ends with this instead of an answer."""

    def __init__(self, detail: ErrorDetail, retry_after_s: float | None = None) -> None:
        super().__init__(f"{detail.code}: {detail.message}")
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """The contract's name of the error."""
        return self.detail.code

    @property
    def message(self) -> str:
        """What was wrong, what was given, what is allowed."""
        return self.detail.message

    @property
    def param(self) -> str | None:
        """The field at fault, where one is."""
        return self.detail.param

    @property
    def request_id(self) -> str:
        """What the service's log calls the request."""
        return self.detail.request_id


class InvalidRequest(DiptychError):
    """An unknown field or a bad value."""


class Unauthorized(DiptychError):
    """No API key, or a wrong one."""


class UnknownModel(DiptychError):
    """No such model is served."""


class ImageTooLarge(DiptychError):
    """The image has more pixels than the service allows."""


class PayloadTooLarge(DiptychError):
    """The request has more bytes than the service allows."""


class UnsupportedImage(DiptychError):
    """Not an image that the service can read."""


class UnsupportedTask(DiptychError):
    """The model does not offer the task, or not this variant of it."""


class Overloaded(DiptychError):
    """Too much is at work there."""


class NotReady(DiptychError):
    """A part of the service is not there."""


class DeadlineExceeded(DiptychError):
    """The time of the call ran out, here or there."""


class InternalError(DiptychError):
    """A defect of the service, or an answer that cannot be read."""


class ConnectionFailed(DiptychError):
    """Nobody answers there."""


_CLASSES: dict[str, type[DiptychError]] = {
    "invalid_request": InvalidRequest,
    "unauthorized": Unauthorized,
    "unknown_model": UnknownModel,
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


def error_of(detail: ErrorDetail, retry_after_s: float | None = None) -> DiptychError:
    """Return the error whose class is that of the code."""
    return _CLASSES.get(detail.code, DiptychError)(detail, retry_after_s)


def connection_failed(reason: str, request_id: str) -> DiptychError:
    """Return the error of a service that cannot be reached."""
    return error_of(ErrorDetail("connection_failed", reason, None, request_id))


def deadline_exceeded(timeout_s: float, request_id: str) -> DiptychError:
    """Return the error of a call whose time ran out on this side."""
    message = f"no answer came in the {timeout_s:.3g} s that were left"
    return error_of(ErrorDetail("deadline_exceeded", message, None, request_id))
