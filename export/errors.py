"""The errors that stop an export or a tuning; nothing is stored after any of them.

ExportError
├── SourceError   a checkpoint or one of its files is missing, unreadable or of another kind
└── ParityError   the exported model, or a precision of it, does not reproduce the original
"""

_MAX_CHARS = 300


class ExportError(Exception):
    """Base class; itself for hosts, processes and datasets that do not suffice."""


class SourceError(ExportError):
    """A checkpoint or one of its files is missing, unreadable or of another kind."""


class ParityError(ExportError):
    """The exported model, or a precision of it, does not reproduce the original."""


def one_line(error: Exception) -> str:
    """Return the error's name and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_CHARS]
