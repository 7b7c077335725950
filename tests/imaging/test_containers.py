"""The structure of image files is bounded, and no metadata reaches Pillow."""

import io
import struct
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from PIL import Image

from imaging.containers import ImageError, OversizedImage, exif_orientation, read_container
from imaging.files import ImageLimits, decode_image, read_header
from tests.support.attack_images import (
    NUM_MANY,
    floods,
    frame_of,
    intact,
    joined,
    riff_chunk,
    segment,
    split,
)
from tests.support.fake_service import encoded
from tests.support.image_files import LIMITS, chunk, colour_steps, differences

FLOODS = list(floods())
SCAN = b"\xff\xda\0\2"
MARKS = SCAN * 10_000  # empty scans


def without_metadata(data: bytes) -> bytes:
    """Return an image file without its metadata."""
    container = read_container(data)
    return b"".join((container.header, *container.rest))


def file_with(image_format: str, part: bytes, place: int = 2) -> bytes:
    """Return a small image with `part` at an index of its parts."""
    parts = split(intact(image_format))
    return joined([*parts[:place], part, *parts[place:]])


def assert_decodes(data: bytes, image_format: str) -> None:
    """Check that an image has the pixels of the intact one."""
    assert read_header(data, LIMITS).size_wh == (64, 32)
    expected = decode_image(intact(image_format), LIMITS)
    assert differences(decode_image(data, LIMITS), expected).max() == 0


def test_floods_of_parts() -> None:
    for image_format, data in FLOODS:
        for function in (read_header, decode_image):
            start_s = time.thread_time()
            with suppress(ImageError):
                function(data, LIMITS)
            took_s = time.thread_time() - start_s
            assert took_s < 3, (image_format, function, data[:200])  # usually 0.1 s


@pytest.mark.parametrize("read", [read_header, decode_image])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (file_with("JPEG", segment(0xE1) * NUM_MANY), "20000 markers before its first scan"),
        (file_with("JPEG", segment(0xDB, bytes(50_000)) * 6), r"30\d{4} bytes of tables before"),
        (file_with("JPEG", SCAN * 991, -1), "more than 1000 scans"),
        (
            file_with("JPEG", SCAN * 20 + segment(0xFE) * NUM_MANY, -1),
            "more than 20000 markers between its scans",
        ),
        (file_with("PNG", chunk(b"abCd") * NUM_MANY), "more than 20000 chunks"),
        (file_with("WEBP", riff_chunk(b"abcd") * NUM_MANY), "more than 20000 chunks"),
        (file_with("WEBP", frame_of(riff_chunk(b"abcd") * NUM_MANY)), "more than 20000 chunks"),
    ],
    ids=["markers", "tables", "scans", "markers between scans", "PNG", "WebP", "WebP frame"],
)
def test_too_many_parts(
    read: Callable[[bytes, ImageLimits], object], data: bytes, problem: str
) -> None:
    with pytest.raises(OversizedImage, match=rf"{problem}.*; the maximum is \d+"):
        read(data, LIMITS)


@pytest.mark.parametrize("fill", [b"\xff", b"\0", b"\xff\0", b"\xff\xd0"])
def test_fill_between_segments(fill: bytes) -> None:
    assert_decodes(file_with("JPEG", fill * 1_000), "JPEG")
    with pytest.raises(ImageError, match="more than 65536 bytes between two segments"):
        read_header(file_with("JPEG", fill * 70_000), LIMITS)


@pytest.mark.parametrize("end", [b"", b"\xff\xd9", b"\xff\xe1\xff"])
def test_jpeg_without_a_scan(end: bytes) -> None:
    with pytest.raises(ImageError, match="before its first scan"):
        read_header(b"".join(split(intact("JPEG"))[:3]) + end, LIMITS)


def test_much_metadata() -> None:
    """An ICC profile of 255 segments, an XMP packet of 5 MB, a thumbnail, and a video behind the
    end.
    """
    profile = b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes((i, 255)) + bytes(60_000)) for i in range(1, 256)
    )
    xmp = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"\xff\xd9" * 30_000) * 80
    thumbnail = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0" + intact("JPEG"))
    assert_decodes(file_with("JPEG", thumbnail + profile + xmp) + b"\xff\xda\0\2" * 5_000, "JPEG")


@pytest.mark.parametrize(
    ("image_format", "parts"),
    [
        ("JPEG", (segment(0xE1, b"Exif\0\0II*"), segment(0xE2, b"MPF\0II*"), segment(0xFE, b"a"))),
        (
            "PNG",
            (chunk(b"iCCP", b"a\0\0broken"), chunk(b"acTL", bytes(8)), chunk(b"tEXt", b"a\0b")),
        ),
        ("WEBP", (riff_chunk(b"EXIF", b"II*"), riff_chunk(b"XMP ", b"<x/>"))),
        ("WEBP", (riff_chunk(b"ICCP", b"broken"),)),
    ],
)
def test_no_metadata_reaches_pillow(image_format: str, parts: tuple[bytes, ...]) -> None:
    """Pillow warns of some, which is an error here: its warnings quote the file in the log."""
    data = file_with(image_format, b"".join(parts))
    assert_decodes(data, image_format)
    assert without_metadata(data) == without_metadata(intact(image_format))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_later_frames_do_not_reach_pillow(image_format: str) -> None:
    red, *others = [Image.new("RGB", (64, 32), colour) for colour in ("red", "blue", "green")]
    options = {"save_all": True, "append_images": others, "lossless": True}
    first = Image.open(io.BytesIO(without_metadata(encoded(red, image_format, **options))))
    assert getattr(first, "n_frames", 1) == 1
    assert first.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_starts_of_scan_elsewhere(place: str) -> None:
    parts = split(encoded(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True))
    assert len(parts) > 10
    index = {"before": 2, "between": -2, "behind": len(parts)}[place]
    marks = b"\0\2" + MARKS if place == "behind" else segment(0xFE, MARKS)
    data = joined([*parts[:index], marks, *parts[index:]])
    assert read_container(data).num_scans == 10
    assert decode_image(data, LIMITS).size == (1000, 1000)


def test_end_of_image_in_metadata() -> None:
    parts = split(encoded(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True))
    data = joined([*parts[:-1], segment(0xFE, b"\xff\xd9"), parts[-2] * 20, parts[-1]])
    with pytest.raises(OversizedImage, match="1000 x 1000 pixels has 30 scans; the maximum is 16"):
        read_header(data, LIMITS)


def tiff(tags: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    entries = b"".join(struct.pack(order + "HHI", *tag[:3]) + tag[3] for tag in tags)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(tags)) + entries


SIX = (0x0112, 3, 1, b"\6\0\0\0")


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (tiff([SIX]), 6),
        (tiff([(0x0112, 3, 1, b"\0\6\0\0")], ">"), 6),
        (b"Exif\0\0" * 2 + tiff([SIX]), 6),
        (tiff([(0x010F, 2, 4, b"abc\0"), (0x0112, 4, 1, b"\3\0\0\0"), SIX]), 3),
        (tiff([(0x0112, 4, 1, b"\0\0\0\6")], ">"), 6),
        (tiff([(0x0112, 3, 2, b"\6\0\0\0")]), None),
        (tiff([(0x0112, 2, 1, b"\6\0\0\0")]), None),
        (tiff([SIX])[:-1], None),
        (b"II*\0\xff\xff\xff\xff" + bytes(20), None),
        (b"II*\0\x09\0\0\0" + bytes(2), None),
        *((data, None) for data in (b"II+\0" + bytes(20), b"II*\0", b"")),
    ],
)
def test_orientation_of_exif(exif: bytes, orientation: int | None) -> None:
    assert exif_orientation(exif) == orientation


def test_orientation_of_xmp_is_ignored() -> None:
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
    assert read_header(file_with("JPEG", xmp), LIMITS).size_wh == (64, 32)
    exif = segment(0xE1, b"Exif\0\0" + tiff([SIX]))
    assert read_header(file_with("JPEG", xmp + exif), LIMITS).size_wh == (32, 64)


def test_colour_space_of_adobe() -> None:
    """Components 1, 2 and 3 would be YCbCr without the segment."""
    by_number = bytes.maketrans(b"RGB", b"\1\2\3")
    parts = split(encoded(colour_steps(), "JPEG", keep_rgb=True, quality=95, subsampling=0))
    parts = [
        part[:20].translate(by_number) + part[20:] if part[1] in (0xC0, 0xDA) else part
        for part in parts
    ]
    assert differences(decode_image(joined(parts), LIMITS), colour_steps()).max() <= 4


def test_pixels_of_a_png() -> None:
    start, header, pixels, end = split(intact("PNG"))
    content = pixels[8:-4]
    runs = [chunk(b"IDAT", content[i : i + 20]) for i in range(0, len(content), 20)]
    assert len(runs) > 2
    assert_decodes(b"".join([start, header, *runs, end]), "PNG")
    interrupted = b"".join([start, header, runs[0], chunk(b"tEXt"), *runs[1:], end])
    assert b"tEXt" not in without_metadata(interrupted)
    with pytest.raises(ImageError, match="truncated"):
        decode_image(interrupted, LIMITS)


def test_places_of_scans() -> None:
    """Markers are searched in windows of 65,536 bytes."""
    assert read_container(file_with("JPEG", SCAN * 990, -1)).num_scans == 1000
    parts = split(intact("JPEG"))
    index = 1 + next(i for i, part in enumerate(parts) if part[1] == 0xDA)
    first, rest = parts[:index], [*parts[index:-1], parts[-2] * 20, parts[-1]]
    for num_bytes in range(65_500, 65_540):
        data = joined([*first, bytes(num_bytes), *rest])
        assert read_container(data).num_scans == 30
