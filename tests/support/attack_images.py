"""Image files made to take long to open or to decode."""

import itertools
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from tests.support.image_files import chunk, colour_steps, encoded

NUM_MANY = 25_000  # parts of a file, more than are allowed
_BOMB = zlib.compress(bytes(1_000_000))
_FRAME_CONTROL = struct.pack(">IIIIIHHBB", 0, 64, 32, 0, 0, 1, 10, 0, 0)
_START_OF_SCAN = b"\xff\xda"


def repeated_scans(size_wh: tuple[int, int], times: int) -> bytes:
    grey = Image.new("RGB", size_wh, (128, 128, 128))
    data = encoded(grey, "JPEG", progressive=True)[:-2]
    return data + data[data.rfind(_START_OF_SCAN) :] * times + b"\xff\xd9"


def riff_chunk(kind: bytes, content: bytes = b"") -> bytes:
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _u24(*values: int) -> bytes:
    return b"".join(struct.pack("<I", value)[:3] for value in values)


def animated_webp(size_wh: tuple[int, int]) -> bytes:
    header = riff_chunk(b"VP8X", b"\x02\0\0\0" + _u24(*(side - 1 for side in size_wh)))
    frame = frame_of(encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:])
    return riff_chunk(b"RIFF", b"WEBP" + header + riff_chunk(b"ANIM", b"\0" * 6) + frame)


def frame_of(chunks: bytes) -> bytes:
    """Return a frame of an animated WebP: at (0, 0), 1 x 1, 100 ms."""
    return riff_chunk(b"ANMF", _u24(0, 0, 0, 0, 100) + b"\0" + chunks)


def endless_exif(num_tags: int, num_bytes: int) -> bytes:
    """Return EXIF whose tags share one long value, which Pillow copies for each."""
    tags = b"".join(struct.pack("<HHII", 1000 + i, 7, num_bytes, 0) for i in range(num_tags))
    return b"II*\0" + struct.pack("<IH", 8, num_tags) + tags + bytes(num_bytes)


def segment(marker: int, content: bytes = b"") -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(content)) + content


# Parts that an attacker may repeat or move; key: format.
PARTS: dict[str, list[bytes]] = {
    "JPEG": [
        *(segment(marker) for marker in (0xE1, 0xE2, 0xFE, 0xC4, 0xDB)),
        segment(0xDD, b"\0\0"),
        segment(0xC0, b"\x08\0\x20\0\x40\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"),
        segment(0xE1, b"Exif\0\0" + endless_exif(100, 1000)),
        segment(0xE2, b"ICC_PROFILE\0\x01\xff"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\xff\xff\xff\xff"),
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 20),
        segment(0xFE, b"\xff\xd9" + b"\xff\xda\0\2" * 20),
        *(b"\xff", b"\0", b"\xff\0", b"\xff\xd0", b"\xff\xd8", b"\xff\xd9", b"\xff\xda\0\2"),
    ],
    "PNG": [
        *(chunk(kind) for kind in (b"eXIf", b"IDAT", b"abCd", b"PLTE", b"tRNS", b"IEND", b"fdAT")),
        chunk(b"eXIf", endless_exif(100, 1000)),
        chunk(b"tEXt", b"a\0b"),
        chunk(b"zTXt", b"a\0\0" + _BOMB),
        chunk(b"iTXt", b"a\0\1\0\0\0" + _BOMB),
        chunk(b"iCCP", b"a\0\0" + _BOMB),
        chunk(b"acTL", struct.pack(">II", 1_000_000, 0)),
        chunk(b"fcTL", _FRAME_CONTROL),
    ],
    "WEBP": [
        *(
            riff_chunk(kind)
            for kind in (b"abcd", b"EXIF", b"XMP ", b"ICCP", b"ALPH", b"VP8 ", b"ANMF", b"VP8X")
        ),
        riff_chunk(b"EXIF", endless_exif(100, 1000)),
        frame_of(riff_chunk(b"abcd") * 3),
    ],
}


def intact(image_format: str) -> bytes:
    return encoded(colour_steps(), image_format, progressive=True)


def split(data: bytes) -> list[bytes]:
    """Return the parts of a file of Pillow: signature, segments or chunks, a JPEG's end."""
    if data.startswith(b"\x89PNG"):
        return _parts(data, 8, lambda place: 12 + int.from_bytes(data[place : place + 4]))
    if data.startswith(b"RIFF"):
        return _parts(data, 12, lambda place: _riff_bytes(data[place + 4 : place + 8]))
    head, *scans = data[:-2].split(_START_OF_SCAN)
    segments = _parts(head, 2, lambda place: 2 + int.from_bytes(data[place + 2 : place + 4]))
    return [*segments, *(_START_OF_SCAN + scan for scan in scans), data[-2:]]


def _riff_bytes(length: bytes) -> int:
    num_bytes = int.from_bytes(length, "little")
    return 8 + num_bytes + num_bytes % 2


def _parts(data: bytes, start: int, num_bytes_at: Callable[[int], int]) -> list[bytes]:
    parts = [data[:start]]
    while start < len(data):
        end = start + num_bytes_at(start)
        parts.append(data[start:end])
        start = end
    return parts


def joined(parts: list[bytes]) -> bytes:
    """Return a file of parts, with the length in the header of a WebP."""
    data = b"".join(parts)
    return riff_chunk(b"RIFF", data[8:]) if data.startswith(b"RIFF") else data


def floods() -> Iterator[tuple[str, bytes]]:
    """Yield format and file: a part many times, after the second part or before the last."""
    for image_format, parts in PARTS.items():
        usual = split(intact(image_format))
        for part, place in itertools.product(parts, (2, len(usual) - 1)):
            if len(part) <= 40:
                yield image_format, joined([*usual[:place], part * NUM_MANY, *usual[place:]])
