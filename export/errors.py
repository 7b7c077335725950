"""The errors that stop an export or a tuning; nothing is stored after any of them.

ExportError
├── SourceError           a checkpoint or one of its files is missing, unreadable or of another
                          family
├── PrecisionError        a precision record is invalid, or shows that a default precision loses too
                          much
├── DiskFullError         the disk has no room for the artifacts
├── ResourceError         the host has too little memory or disk for the export
├── EncoderError          the process that makes the vision encoders failed
├── ImageProcessorError   the image processor has steps that the service does not implement
├── ParityError           the exported model does not reproduce the original
└── TuningError           a model cannot be tuned on a dataset or for a task
"""

import errno


class ExportError(Exception):
    """Base class of the errors that stop an export or a tuning."""


class SourceError(ExportError):
    """A checkpoint or one of its files is missing, unreadable or of another family."""


class PrecisionError(ExportError):
    """A precision record is invalid, or shows that a default precision loses too much."""


class DiskFullError(ExportError):
    """The disk has no room for the artifacts."""


class ResourceError(ExportError):
    """The host has too little memory or disk for the export."""


class EncoderError(ExportError):
    """The process that makes the vision encoders failed."""


class ImageProcessorError(ExportError):
    """The image processor has steps that the service does not implement."""


class ParityError(ExportError):
    """The exported model does not reproduce the original."""


class TuningError(ExportError):
    """A model cannot be tuned on a dataset or for a task."""


def is_disk_full(error: BaseException) -> bool:
    """Return True for the system's error, as Python raises it or as safetensors and hf_xet have it
    in their texts.
    """
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)
