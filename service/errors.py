"""Errors that end a request.

They know no HTTP: `code` is the public name, and each interface maps it to its own statuses in one
table. A message names the problem, the given value, the allowed values, and what to do.
"""

import math
from typing import Literal

ErrorCode = Literal[
    "invalid_request",
    "unauthorized",
    "unknown_model",
    "not_found",
    "image_expired",
    "image_too_large",
    "payload_too_large",
    "unsupported_image",
    "unsupported_task",
    "overloaded",
    "not_ready",
    "runner_failed",
    "deadline_exceeded",
    "internal",
]

_RETRYABLE: tuple[ErrorCode, ...] = ("overloaded", "not_ready")


class ServiceError(Exception):
    """Base of all errors that a client receives; `param` names an invalid field."""

    code: ErrorCode = "internal"

    def __init__(
        self, message: str, param: str | None = None, code: ErrorCode | None = None
    ) -> None:
        # a half of a surrogate pair, which may come from outside, has no place in any answer
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.code = code or type(self).code
        self.retry_after_s: int | None = 1 if self.code in _RETRYABLE else None
        self.message = message
        self.param = param
        self.model: str | None = None
        self.task: str | None = None


class InvalidRequest(ServiceError):
    """Unknown field or invalid value."""

    code = "invalid_request"


class UnsupportedImage(ServiceError):
    """Not a readable image file."""

    code = "unsupported_image"


class Overloaded(ServiceError):
    """A limit of load is reached; retry after `retry_after_s` seconds, at least 1."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float = 1) -> None:
        wait_s = max(1, math.ceil(retry_after_s))
        super().__init__(f"{message}; retry after {wait_s} s")
        self.retry_after_s: int = wait_s


class NotReady(ServiceError):
    """A runner is starting or unreachable."""

    code = "not_ready"


class RunnerFailed(ServiceError):
    """A runner ended twice while it answered the request, the second time alone."""

    code = "runner_failed"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed."""

    code = "deadline_exceeded"
