"""Errors of a request for a task, and of the files of a checkpoint.

TaskError                 has the parameter that it concerns
├── ParameterError        a parameter is missing, unknown or has a bad value
└── UnsupportedTask       this model does not offer the task, or not with this value
CheckpointFileError       a file of a checkpoint is invalid
"""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

_MAX_SHOWN_CHARS = 80
_NESTED = reprlib.Repr()
_NESTED.fillvalue = "…"


class TaskError(ValueError):
    """The task cannot be performed; the message has what is wrong, given and allowed."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class ParameterError(TaskError):
    """A parameter is missing, unknown or has a bad value."""


class UnsupportedTask(TaskError):
    """The model does not offer the task (`param` is "task"), or not with this parameter."""


class CheckpointFileError(ValueError):
    """A file is not a calibration, or not a mask decoder, of the checkpoint's model."""


def shown(value: object) -> str:
    """Return a rejected value as a message shows it: its repr, cut to a readable length."""
    if isinstance(value, str | bytes):
        value = value[: _MAX_SHOWN_CHARS + 1]  # the repr of 20 MB takes a tenth of a second
    text = _NESTED.repr(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"


def meant(name: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the allowed name closest to `name`, or nothing."""
    matches = get_close_matches(name[:_MAX_SHOWN_CHARS], allowed, 1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def first_problem(error: ValidationError) -> str:
    """Return the place of the first invalid value, what is wrong with it, and the value."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}, not {shown(problem['input'])}"
