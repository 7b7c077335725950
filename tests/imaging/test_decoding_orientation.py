import io
import struct

import pytest
from PIL import Image, ImageOps

from tests.support.fake_service import encoded
from tests.support.image_files import (
    ORIENTATION,
    X_RESOLUTION,
    chunk,
    colour_steps,
    decode,
    differences,
)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_upright_by_its_exif_orientation(
    image_format: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95, "subsampling": 0}
    data = encoded(colour_steps(), image_format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data)
    assert decoded.size == ((32, 64) if orientation >= 5 else (64, 32))
    assert differences(decoded, expected).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_with_its_orientation_behind_the_pixels_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    behind = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + chunk(b"IEND", b"")
    data = encoded(colour_steps(), "PNG").removesuffix(chunk(b"IEND", b"")) + behind
    assert decode(data).size == ((32, 64) if orientation >= 5 else (64, 32))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert decode(encoded(colour_steps(), exif=exif)).size == (64, 32)


def exif_with_text_as_rational(orientation: int) -> bytes:
    """Return EXIF whose X resolution is a text of one byte: cameras' software writes worse."""
    entries = [
        (ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)),
        (X_RESOLUTION, 2, 2, b"7\0\0\0"),
    ]
    ifd = b"".join(
        struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries
    )
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + ifd + struct.pack("<I", 0)


def exif_with_orientation_of_type(kind: int, value: bytes) -> bytes:
    entry = struct.pack("<HHI", ORIENTATION, kind, 1) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


def test_photo_with_malformed_exif_tags_is_turned_upright() -> None:
    data = encoded(colour_steps(), "JPEG", exif=exif_with_text_as_rational(6))
    assert decode(data).size == (32, 64)


@pytest.mark.parametrize("kind", [1, 2, 4, 7, 9, 11])
def test_orientation_of_a_wrong_type_raises_no_defect(kind: int) -> None:
    data = encoded(colour_steps(), "JPEG", exif=exif_with_orientation_of_type(kind, b"\6\0\0\0"))
    assert decode(data).size in ((64, 32), (32, 64))
