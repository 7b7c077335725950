"""What a request can end with other than an answer.

ServiceError
├── InvalidRequest       an unknown field or a bad value
├── Unauthorized         no API key, or a wrong one
├── UnknownModel         no such model is served
├── ImageTooLarge        the image has more pixels than the limit
├── PayloadTooLarge      the body has more bytes than the limit
├── UnsupportedImage     not an image that can be read
├── UnsupportedTask      the model does not offer the task, or not this variant of it
├── Overloaded           too much waits already; it names the seconds to wait
├── NotReady             a runner is starting, or gone
├── DeadlineExceeded     the request's time ran out
└── InternalError        a defect of ours; the message says nothing of it

The tree knows no HTTP: `code` is the contract's name, and each interface has one table from it to its own statuses.
Every message says what was wrong, what was given and what is allowed.
"""

import math
from typing import ClassVar, Literal

ErrorCode = Literal[
    "invalid_request",
    "unauthorized",
    "unknown_model",
    "image_too_large",
    "payload_too_large",
    "unsupported_image",
    "unsupported_task",
    "overloaded",
    "not_ready",
    "deadline_exceeded",
    "internal",
]


class ServiceError(Exception):
    """A request ends with this instead of an answer.

    `param` names the field at fault, where there is one; `model` and `task` are set where a model was asked.
    """

    code: ClassVar[ErrorCode] = "internal"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.model: str | None = None
        self.task: str | None = None


class InvalidRequest(ServiceError):
    """An unknown field or a bad value."""

    code = "invalid_request"


class Unauthorized(ServiceError):
    """No API key, or a wrong one."""

    code = "unauthorized"


class UnknownModel(ServiceError):
    """No such model is served."""

    code = "unknown_model"


class ImageTooLarge(ServiceError):
    """The image has more pixels than the limit."""

    code = "image_too_large"


class PayloadTooLarge(ServiceError):
    """The body has more bytes than the limit."""

    code = "payload_too_large"


class UnsupportedImage(ServiceError):
    """Not an image that can be read."""

    code = "unsupported_image"


class UnsupportedTask(ServiceError):
    """The model does not offer the task, or not this variant of it."""

    code = "unsupported_task"


class Overloaded(ServiceError):
    """Too much waits already; after `retry_after_s` whole seconds, at least one, there is hope."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, math.ceil(retry_after_s))


class NotReady(ServiceError):
    """A runner is starting, or gone."""

    code = "not_ready"


class DeadlineExceeded(ServiceError):
    """The request's time ran out."""

    code = "deadline_exceeded"


class InternalError(ServiceError):
    """A defect of ours."""

    code = "internal"
