"""The errors that stop an export or a tuning; nothing is stored after any of them.

ExportError
├── SourceError   a checkpoint or one of its files is missing, unreadable or of another kind
└── ParityError   the exported model, or a precision of it, does not reproduce the original
"""

import errno


class ExportError(Exception):
    """Base class; itself for hosts, processes and datasets that do not suffice."""


class SourceError(ExportError):
    """A checkpoint or one of its files is missing, unreadable or of another kind."""


class ParityError(ExportError):
    """The exported model, or a precision of it, does not reproduce the original."""


def is_disk_full(error: BaseException) -> bool:
    """Return True for the system's error, as Python raises it or as safetensors and hf_xet have it
    in their texts.
    """
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
