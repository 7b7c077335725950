"""Errors of an image file.

ImageError
├── UnreadableImage   not a complete file of an allowed format
└── OversizedImage    more pixels, scans, tables or parts than the limit

The message names the problem, the given value and the allowed values. The service gives each error
its public name in `service/images/decoding.py`, the export adds the file.
"""


class ImageError(Exception):
    """Base of the errors of an image file."""


class UnreadableImage(ImageError):
    """Not a complete file of an allowed format."""


class OversizedImage(ImageError):
    """More pixels, scans, tables or parts than the limit; `size_wh` if it is known."""

    def __init__(self, message: str, size_wh: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.size_wh = size_wh
