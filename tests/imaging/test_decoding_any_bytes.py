import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging.errors import ImageError
from tests.support.attack_images import NUM_MANY, PARTS, intact, joined, split
from tests.support.fake_service import encoded
from tests.support.image_files import (
    DESCRIPTION,
    ORIENTATION,
    X_RESOLUTION,
    chunk,
    colour_steps,
    decode,
    half_transparent,
)


def checksums_mended(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums that fit, so that mutations come past them."""
    mended = data[:8]
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 8 : position + 8 + length]
        mended += chunk(data[position + 4 : position + 8], body)
        position += 12 + length
    return mended


def decodes_or_refuses(data: bytes) -> bool:
    """Return True for an image, False for an `ImageError`; any other exception escapes."""
    try:
        return decode(data).mode == "RGB"
    except ImageError as error:
        return bool(str(error))


EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
EXIF[DESCRIPTION] = "a"
EXIF[X_RESOLUTION] = 72.0
SEEDS = [
    encoded(image.resize((8, 4)), image_format, exif=EXIF)
    for image, image_format in itertools.product(
        (
            colour_steps(),
            half_transparent("RGBA"),
            colour_steps().convert("P"),
            colour_steps().convert("1"),
        ),
        ("PNG", "WEBP"),
    )
] + [encoded(colour_steps().resize((8, 4)), "JPEG", exif=EXIF)]


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\xff\0\0\0WEBP"]),
    st.binary(max_size=300),
)
def test_random_bytes_are_decoded_or_refused(start: bytes, rest: bytes) -> None:
    assert decodes_or_refuses(start + rest)


@settings(max_examples=500)
@given(st.sampled_from(SEEDS), st.data())
def test_mutated_images_are_decoded_or_refused(seed: bytes, data: st.DataObject) -> None:
    mutated = bytearray(seed)
    places = st.one_of(st.integers(0, len(seed) - 1), st.integers(0, min(120, len(seed) - 1)))
    for place, value in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        mutated[place] = value
    is_png = seed.startswith(b"\x89PNG")
    assert decodes_or_refuses(checksums_mended(bytes(mutated)) if is_png else bytes(mutated))


@settings(max_examples=200)
@given(st.sampled_from(sorted(PARTS)), st.data())
def test_any_parts_in_any_order_are_decoded_or_refused(
    image_format: str, data: st.DataObject
) -> None:
    parts = split(intact(image_format))
    part = st.sampled_from([*parts, *PARTS[image_format]])
    runs = st.tuples(st.integers(1, len(parts)), part, st.sampled_from([0, 1, 2, 50, NUM_MANY]))
    for place, run, times in data.draw(st.lists(runs, min_size=1, max_size=4)):
        replaced = data.draw(st.integers(0, 1))
        parts[place : place + replaced] = [run * min(times, 2_000_000 // len(run))]
    file = joined(parts)
    assert decodes_or_refuses(file)
