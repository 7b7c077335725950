"""The user's own image files: of a dataset to tune on, or photographs to compare precisions on.

A module apart: the decoding program has no paths.
"""

from pathlib import Path

from PIL import Image

from imaging.files import ImageLimits, decode_image

_LIMITS = ImageLimits(max_pixels=178_956_970)  # Pillow's limit


def read_image(path: Path) -> Image.Image:
    """Return the upright image in mode RGB; raise `ImageError` or `OSError`."""
    return decode_image(path.read_bytes(), _LIMITS)
