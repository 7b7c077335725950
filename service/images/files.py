"""An image file: header and hash, checked against limits before any pixel is decoded; upright pixels in RGB.

Format, sides and scans are known from the header; together they bound time and memory of decoding. The decoding program
imports this module for each image that takes long: it loads no more than it needs.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blake3 import blake3
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from service.errors import ImageTooLarge, UnsupportedImage

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns and raises; `_open` checks ours

FORMATS = ("JPEG", "PNG", "WEBP")
# By EXIF orientation, as in Pillow's ImageOps.exif_transpose, which also rewrites the tags and fails on malformed ones.
_TRANSPOSITIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING_SIDES = {  # width becomes height
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}
_BACKGROUND_RGB = (255, 255, 255)  # behind transparent pixels
# A JPEG may repeat a scan at will, and each one is decoded over all pixels. Usual are up to 10: libjpeg's progression.
_MAX_FULL_SCANS = 16  # of an image of the maximum size; a smaller one may have more
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_PNG_CHUNKS = 8  # they begin behind the signature
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_SCAN = bytes((0xFF, _START_OF_SCAN))
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed zero nor a restart (ITU T.81, B.1.1)

# Estimated nanoseconds to decode a pixel: a photograph of 12 MP took 12 on a core of an EPYC, as a progressive JPEG of
# 10 scans 25, as PNG or WebP 35 to 70.
_JPEG_NS, _SCAN_NS, _OTHERS_NS = 10, 1.5, 50
_LIGHT_NS, _HEAVY_NS = 10_000_000, 600_000_000


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on an image, checked by its header."""

    max_pixels: int
    max_side_px: int = 20_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Properties of an image file that are known before decoding."""

    size_wh: tuple[int, int]  # of the upright image, px: results are in this frame
    digest: bytes  # of the file
    is_light: bool  # is decoded in only a few times the time of a call to a runner
    is_heavy: bool  # takes long to decode


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Read the header of an image file and hash the file; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, limits)
    width, height = image.size
    with _decoding_errors(image):
        is_on_side = _transposition(_header_exif(image, data)) in _SWAPPING_SIDES
    upright_wh = (height, width) if is_on_side else (width, height)
    decoding_ns = _decoding_ns(image, data)
    return ImageHeader(upright_wh, blake3(data).digest(), decoding_ns < _LIGHT_NS, decoding_ns > _HEAVY_NS)


def decode_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return the upright image in mode RGB; raise `UnsupportedImage` or `ImageTooLarge`."""
    image = _open(data, limits)
    with _decoding_errors(image):
        image.load()
        transposition = _transposition(image.getexif())
        rgb = _to_rgb(image)
        return rgb if transposition is None else rgb.transpose(transposition)


def resize(rgb: Image.Image, size_wh: tuple[int, int], resample: int) -> Image.Image:
    """Return the image at exactly `size_wh`, without keeping the aspect ratio, as the models were trained."""
    return rgb.resize(size_wh, Image.Resampling(resample))


def _decoding_ns(image: Image.Image, data: bytes) -> float:
    width, height = image.size
    pixel_ns = _JPEG_NS + _SCAN_NS * data.count(_SCAN) if image.format == "JPEG" else _OTHERS_NS
    return width * height * pixel_ns


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        message = f"the image cannot be read; it must be a file in one of the formats {', '.join(FORMATS)}"
        raise UnsupportedImage(message, "image") from error
    width, height = image.size
    found = f"the image has {width} x {height}"
    if width * height > limits.max_pixels:
        message = f"{found} = {width * height} pixels; the maximum is {limits.max_pixels}"
        raise ImageTooLarge(message, "image")
    if max(image.size) > limits.max_side_px:
        raise ImageTooLarge(f"{found} pixels; the maximum of a side is {limits.max_side_px}", "image")
    if image.format == "JPEG":
        _check_scans(data, image.size, limits)
    return image


def _check_scans(data: bytes, size_wh: tuple[int, int], limits: ImageLimits) -> None:
    allowed = _MAX_FULL_SCANS * limits.max_pixels // (size_wh[0] * size_wh[1])
    # Two bytes are counted faster than markers are followed; in metadata they may be anything.
    if data.count(_SCAN) > allowed and (num_scans := _num_scans(data)) > allowed:
        message = f"the JPEG has {num_scans} scans of {size_wh[0]} x {size_wh[1]} pixels; the maximum is {allowed}"
        raise ImageTooLarge(message, "image")


def _num_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG up to its end; data behind it, as of a motion photo, do not count."""
    num_scans, position = 0, 2  # behind the start of image
    while (marker := _JPEG_MARKER.search(data, position)) and marker[1][0] != _END_OF_IMAGE:
        num_scans += marker[1][0] == _START_OF_SCAN
        # Another marker than these has a length of at least 2, which includes itself.
        position = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
    return num_scans


def _header_exif(image: Image.Image, data: bytes) -> Image.Exif:
    if image.format != "PNG":
        return image.getexif()
    if b"eXIf" not in data and b"Raw profile type" not in data:
        return Image.Exif()
    return Image.Image.getexif(PngImageFile(io.BytesIO(_without_pixels(data))))


def _without_pixels(png: bytes) -> bytes:
    """Return a PNG without its pixels: Pillow would decode them to find an orientation that is behind them."""
    kept, has_pixels, position = [png[:_PNG_CHUNKS]], False, _PNG_CHUNKS
    while position < len(png):
        kind = png[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(png[position : position + 4])  # length, kind and checksum take 12
        if has_pixels and kind == b"fcTL":  # the second frame, which is not read
            break
        has_pixels = has_pixels or kind == b"IDAT"
        if kind != b"IDAT":
            kept.append(png[position:end])
        position = end
    return b"".join([*kept, _PNG_END])


def _transposition(exif: Image.Exif) -> Image.Transpose | None:
    return _TRANSPOSITIONS.get(exif.get(ExifTags.Base.Orientation))


@contextmanager
def _decoding_errors(image: Image.Image) -> Iterator[None]:
    """Raise `UnsupportedImage` for the exceptions of Pillow on a damaged file."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, AssertionError) as error:
        # AssertionError: Pillow 13 asserts that a palette image has its palette, which a damaged file may lack.
        message = f"the {image.format} image is damaged or truncated and cannot be decoded"
        raise UnsupportedImage(message, "image") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: `convert` would clip it; a transparent tone is ignored
        return _eight_bit(image).convert("RGB")
    return _flatten(image) if image.has_transparency_data else image.convert("RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    import numpy as np  # takes longer than all else that this module loads

    return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Return `image` over white: the colour of transparent pixels is undefined."""
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, _BACKGROUND_RGB)
    rgb.paste(rgba, mask=rgba)  # `alpha_composite` keeps the interpreter's lock, 0.15 s for 12 MP
    return rgb
