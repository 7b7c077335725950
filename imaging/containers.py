"""The structure of an image file, read before Pillow: decoding data and orientation.

Metadata never reaches Pillow, which takes seconds or gigabytes for some of a few megabytes: EXIF,
XMP, ICC profiles, texts and further frames are skipped, whatever their size. The number of parts is
bounded, so that reading them is fast.

    JPEG    start of image; segments of marker, length and content; the first scan (ITU T.81, annex
            B)
    PNG     signature; chunks of length, kind, content and checksum (PNG specification, 5)
    WEBP    RIFF header; chunks of kind, length, content and padding (RFC 9649, 2)
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["JPEG", "PNG", "WEBP"]
FORMATS: tuple[ImageFormat, ...] = ("JPEG", "PNG", "WEBP")

# markers or chunks: a PNG of 80 MB in the smallest pieces of usual encoders, 4 kB
_MAX_PARTS = 20_000
# usually below 2,000; Pillow takes 60 ms for a million bytes
_MAX_TABLES_BYTES = 256_000
_USUAL_SCANS = 16  # libjpeg's progression has 10
_MAX_SCANS = 1_000
_MAX_FILL_BYTES = 65_536  # fill between two segments of a JPEG, usually none

_JPEG_START = b"\xff\xd8"
# Neither fill bytes, stuffed zeros, restarts nor starts of image (ITU T.81, B.1.1).
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_SCAN = bytes((0xFF, _START_OF_SCAN))
_APP0 = 0xE0
_APP1 = 0xE1
_APP14 = 0xEE
_APP15 = 0xEF
_COMMENT = 0xFE
_COLOUR_SEGMENTS = {_APP0, _APP14}  # JFIF and Adobe: libjpeg derives the colour space from them
_JPEG_METADATA = ({*range(_APP0, _APP15 + 1)} - _COLOUR_SEGMENTS) | {_COMMENT}

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS"}  # chunks kept with the pixels

_WEBP_KEPT = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM"}  # kept with an animation's first frame
_ANMF_PIXELS = 24  # behind the header of its chunk and its position, size and duration

_EXIF_START = b"Exif\0\0"
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_LONG = 4


class ImageError(Exception):
    """Not a complete file of an allowed format; the message says what is allowed."""


class OversizedImage(ImageError):
    """More pixels, scans, tables or parts than the limit."""


@dataclass(frozen=True, slots=True)
class Container:
    """An image file without its metadata: `header` followed by `rest`."""

    format: ImageFormat
    header: bytes  # size and mode are known from it; of a WebP it is the whole file
    rest: tuple[memoryview, ...]
    orientation: int | None  # EXIF's
    num_scans: int = 1  # a JPEG may have more


def read_container(data: bytes) -> Container:
    """Read the structure of an image file; raise `ImageError` or `OversizedImage`."""
    if data.startswith(_JPEG_START + b"\xff"):
        return _jpeg(data)
    if data.startswith(_PNG_START):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    allowed = f"a file in one of the formats {', '.join(FORMATS)}"
    converts = "the Python client converts HEIC, AVIF, TIFF, GIF, BMP and PDF"
    raise ImageError(f"the image cannot be read; it must be {allowed}; {converts}")


def _jpeg(data: bytes) -> Container:
    header_parts = [_JPEG_START]
    exif = b""
    position = len(_JPEG_START)
    for _ in range(_MAX_PARTS):
        marker = _JPEG_MARKER.search(data, position, position + _MAX_FILL_BYTES)
        if marker is None or marker[1][0] == _END_OF_IMAGE:
            problem = f"ends or has more than {_MAX_FILL_BYTES} bytes between two segments"
            raise ImageError(
                f"the JPEG {problem} before its first scan; it must be a complete image file"
            )
        position = _segment_end(data, marker)
        kind = marker[1][0]
        segment = data[marker.start() : position]
        if kind not in _JPEG_METADATA:
            header_parts.append(segment)
        elif kind == _APP1 and not exif and segment.startswith(_EXIF_START, 4):
            exif = segment[4:]
        if kind == _START_OF_SCAN:
            tables = b"".join(header_parts)
            if len(tables) > _MAX_TABLES_BYTES:
                problem = f"has {len(tables)} bytes of tables before its first scan"
                raise OversizedImage(f"the JPEG {problem}; the maximum is {_MAX_TABLES_BYTES}")
            rest = (memoryview(data)[position:],)
            num_scans = _num_scans(data, position)
            return Container("JPEG", tables, rest, exif_orientation(exif), num_scans)
    raise _too_many_parts("JPEG", "markers before its first scan")


def _segment_end(data: bytes, marker: re.Match[bytes]) -> int:
    """Return the end of the segment of a marker; its length includes itself."""
    return marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))


def _num_scans(data: bytes, position: int) -> int:
    """Return the number of scans of a JPEG, whose first one begins at `position`."""
    # faster than to follow markers; behind the end it may be anything
    num_scans = 1 + data.count(_SCAN, position)
    if num_scans <= _USUAL_SCANS:
        return num_scans
    num_scans = 1
    for _ in range(_MAX_PARTS):
        marker = None
        # other threads run between two searches
        for start in range(position, len(data), _MAX_FILL_BYTES):
            if marker := _JPEG_MARKER.search(data, start, start + _MAX_FILL_BYTES + 1):
                break
        if marker is None or marker[1][0] == _END_OF_IMAGE:
            return num_scans
        num_scans += marker[1][0] == _START_OF_SCAN
        if num_scans > _MAX_SCANS:
            raise OversizedImage(
                f"the JPEG has more than {_MAX_SCANS} scans; the maximum is {_MAX_SCANS}"
            )
        position = _segment_end(data, marker)
    raise _too_many_parts("JPEG", "markers between its scans")


def _png(data: bytes) -> Container:
    """Keep header, palette, transparency and the first run of pixels; EXIF may be behind them."""
    header_parts = [_PNG_START]
    exif = b""
    position = len(_PNG_START)
    pixels = slice(0, 0)
    for _ in range(_MAX_PARTS):
        kind = data[position + 4 : position + 8]
        if len(kind) < 4 or kind == b"IEND":
            break
        # length, kind and checksum take 12
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if kind == b"IDAT" and not pixels.stop:
            pixels = slice(position, end)
        elif kind == b"IDAT" and position == pixels.stop:
            pixels = slice(pixels.start, end)
        elif kind == b"eXIf" and not exif:
            exif = data[position + 8 : end - 4]
        elif kind in _PNG_KEPT and not pixels.stop:
            header_parts.append(data[position:end])
        position = end
    else:
        raise _too_many_parts("PNG", "chunks")
    body = pixels.start + 8
    header = b"".join((*header_parts, data[pixels.start : body]))
    rest = memoryview(data)[body : pixels.stop], memoryview(_PNG_END)
    return Container("PNG", header, rest, exif_orientation(exif))


def _webp(data: bytes) -> Container:
    """Keep what has pixels, of an animation the first frame."""
    header_parts = [b"WEBP"]
    exif = b""
    has_frame = False
    for kind, start, end in _riff_chunks(
        data, 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    ):
        if kind == b"ANMF" and not has_frame:
            has_frame = True
            for _ in _riff_chunks(data, start + _ANMF_PIXELS, end):
                pass  # counted
            header_parts.append(data[start:end])
        elif kind in _WEBP_KEPT:
            header_parts.append(data[start:end])
        elif kind == b"EXIF" and not exif:
            exif = data[start + 8 : end]
    content = b"".join(header_parts)
    return Container(
        "WEBP", b"RIFF" + struct.pack("<I", len(content)) + content, (), exif_orientation(exif)
    )


def _riff_chunks(data: bytes, position: int, parent_end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk; raise `OversizedImage`."""
    for _ in range(_MAX_PARTS):
        if position + 8 > parent_end:
            return
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + length + length % 2
        yield data[position : position + 4], position, end
        position = end
    raise _too_many_parts("WEBP", "chunks")


def _too_many_parts(image_format: ImageFormat, parts: str) -> OversizedImage:
    return OversizedImage(
        f"the {image_format} has more than {_MAX_PARTS} {parts}; the maximum is {_MAX_PARTS}"
    )


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation in EXIF, None without a valid one (Exif 3.0, 4.6; TIFF 6.0, 2)."""
    tiff = exif.removeprefix(_EXIF_START).removeprefix(_EXIF_START)  # some writers repeat it
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return None
    (num_tags,) = struct.unpack_from(order + "H", tiff, start)
    tags = tiff[start + 2 : start + 2 + 12 * num_tags]
    for tag, kind, count, value in struct.iter_unpack(
        order + "HHI4s", tags[: len(tags) // 12 * 12]
    ):
        if tag == _ORIENTATION_TAG and count == 1 and kind in (_SHORT, _LONG):
            (orientation,) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), value)
            return int(orientation)
    return None
