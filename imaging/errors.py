"""Errors of an image file; they know no HTTP.

`service/images/decoding.py` gives each its public name, the export adds the file.
"""


class ImageError(Exception):
    """Not a complete file of an allowed format; the message says what is allowed."""


class OversizedImage(ImageError):
    """More pixels, scans, tables or parts than the limit."""
