"""Errors of a request for a task.

TaskError
├── ParameterError        a parameter is missing, unknown or has a bad value
├── UnsupportedVariant    this model offers the task, but not with this value of the parameter
└── UnsupportedTask       this model does not offer the task
"""


class TaskError(ValueError):
    """The task cannot be performed; the message says what is wrong, what was given and what is allowed."""


class ParameterError(TaskError):
    """A parameter is missing, unknown or has a bad value."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedVariant(TaskError):
    """The model offers the task, but not with this value of the parameter."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedTask(TaskError):
    """The model does not offer the task."""
