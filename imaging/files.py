"""An image file: header and hash, checked before pixels are decoded; upright RGB, resized.

Format, sides and scans are known from the header; together they bound time and memory of decoding.
The decoding program imports this module for each image that takes long: it has few imports.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imaging.containers import Container, ImageError, ImageFormat, OversizedImage, read_container

# Pillow's warnings quote foreign files, thousands of times for one file
warnings.filterwarnings("ignore", module="PIL")
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns and raises; `_open` checks ours

# EXIF orientation: how to undo it. Pillow's ImageOps.exif_transpose does the same, but it rewrites
# the tags and fails on malformed ones.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = range(5, 9)  # orientations; width becomes height
# `Image.open` would load the modules of all formats, with the first WebP.
_READERS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})  # of names, in lower case
# AssertionError: Pillow 13 asserts that a palette image has its palette, which a damaged file may
# lack.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, AssertionError)
_BACKGROUND_RGB = (255, 255, 255)  # behind transparent pixels
# A JPEG may repeat a scan at will, and each one is decoded over all pixels. Usual are up to 10:
# libjpeg's progression.
_MAX_FULL_SCANS = 16  # at the maximum image size; a smaller image may have more

# Estimated nanoseconds to decode a pixel: a photograph of 12 MP took 12 on a core of an EPYC, as a
# progressive JPEG of 10 scans 25, as PNG or WebP 35 to 70.
_JPEG_NS = 10
_SCAN_NS = 1.5
_OTHERS_NS = 50
_LIGHT_NS = 10_000_000
_HEAVY_NS = 600_000_000

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom; the last two are outside


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on an image, checked by its header."""

    max_pixels: int
    max_side_px: int = 20_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Properties of an image file that are known before decoding."""

    size_wh: tuple[int, int]  # the upright image, px: results are in this frame
    digest: bytes  # hash of the file
    is_light: bool  # is decoded in only a few times the time of a call to a runner
    is_heavy: bool  # takes long to decode


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Read header and hash; raise `ImageError` or `OversizedImage`."""
    container = read_container(data)
    image = _open(container.header, container, limits)
    width, height = image.size
    pixel_ns: float = _OTHERS_NS
    if container.format == "JPEG":
        pixel_ns = _JPEG_NS + _SCAN_NS * container.num_scans
    decoding_ns = width * height * pixel_ns
    return ImageHeader(
        (height, width) if container.orientation in _ON_SIDE else (width, height),
        blake3(data).digest(),
        decoding_ns < _LIGHT_NS,
        decoding_ns > _HEAVY_NS,
    )


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the upright image in mode RGB; raise `ImageError` or `OversizedImage`."""
    container = read_container(data)
    image = _open(b"".join((container.header, *container.rest)), container, limits)
    # One block: a long run of fill bytes would be read again with each block.
    image.decodermaxblock = len(data)
    try:
        image.load()
        if image.mode.startswith("I"):
            # 16-bit grey: `convert` would clip it; a transparent tone is ignored
            rgb = image.point(lambda tone: tone / 256).convert("RGB")
        elif image.has_transparency_data:
            # over white: the colour of transparent pixels is undefined
            rgba = image if image.mode == "RGBA" else image.convert("RGBA")
            rgb = Image.new("RGB", rgba.size, _BACKGROUND_RGB)
            # `alpha_composite` keeps the interpreter's lock, 0.15 s for 12 MP
            rgb.paste(rgba, mask=rgba)
        elif image.mode == "RGB" and container.format != "WEBP":
            rgb = image  # `convert` would copy it; a WebP's reader keeps two more images
        else:
            rgb = image.convert("RGB")
    except _DECODING_ERRORS as error:
        raise _damaged(container) from error
    transposition = _TRANSPOSITIONS.get(container.orientation or 1)
    return rgb if transposition is None else rgb.transpose(transposition)


def resize(
    rgb: Image.Image, size_wh: tuple[int, int], resample: int, crop: PixelBox | None = None
) -> Image.Image:
    """Return the image, or a part, at exactly `size_wh`, as models are trained."""
    part = rgb if crop is None else rgb.crop(crop)
    if part.size == size_wh:
        return part  # `resize` would copy it
    return part.resize(size_wh, Image.Resampling(resample))


def _open(file: bytes, container: Container, limits: ImageLimits) -> ImageFile.ImageFile:
    try:
        image = _READERS[container.format](io.BytesIO(file))
    except _DECODING_ERRORS as error:
        raise _damaged(container) from error
    width, height = image.size
    problem = None
    max_scans = _MAX_FULL_SCANS * limits.max_pixels // (width * height)
    if width * height > limits.max_pixels:
        problem = f"{width * height} pixels; the maximum is {limits.max_pixels}"
    elif max(image.size) > limits.max_side_px:
        problem = f"a side of {max(image.size)} pixels; the maximum is {limits.max_side_px}"
    elif container.num_scans > max_scans:
        problem = f"{container.num_scans} scans; the maximum is {max_scans}"
    if problem is not None:
        raise OversizedImage(f"the image of {width} x {height} pixels has {problem}")
    return image


def _damaged(container: Container) -> ImageError:
    message = f"the {container.format} image is damaged or truncated and cannot be decoded"
    return ImageError(message)


_LIMITS = ImageLimits(max_pixels=178_956_970)  # Pillow's limit


def read_image(path: Path) -> Image.Image:
    """Return the upright image in mode RGB; raise `ImageError` or `OSError`."""
    return decode_image(path.read_bytes(), _LIMITS)
