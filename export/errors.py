"""Why an export stops; in every case nothing is stored.

ExportError
├── SourceError           a checkpoint, or a part of it, cannot be had or is not what the catalog says
├── PrecisionError        a default precision was found to lose too much
├── ImageProcessorError   its image processor does something that service and graph do not
└── ParityError           what was exported does not do what the original does
"""


class ExportError(Exception):
    """An export cannot be made."""


class SourceError(ExportError):
    """A checkpoint, or a part of it, cannot be had or is not what the catalog says."""


class PrecisionError(ExportError):
    """A default precision was found to lose too much."""


class ImageProcessorError(ExportError):
    """A checkpoint's image processor does something that service and graph do not."""


class ParityError(ExportError):
    """What was exported does not do what the original does."""
