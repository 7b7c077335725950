"""The program that decodes one image and resizes it on request; it may be killed.

    python -m service.images.decoding_program FD PARENT MAX_PIXELS MAX_SIDE_PX

    FD       file with the image
    stdout   first a line: "sandboxed" or "unprotected", and why the image is not decoded, after
             which the program ends;
             then the pixels of each request, uint8 (H, W, 3)
    stdin    a line for each request: WIDTH HEIGHT RESAMPLE [LEFT TOP RIGHT BOTTOM], the last four
             of a part of the image; the program ends with the file

The sandbox is entered before the image is opened. The program knows nothing of the service:
`service/images/decoding.py` starts it.
"""

import os
import sys

from imaging.containers import ImageError
from imaging.files import ImageLimits, decode_image, resize
from imaging.sandbox import confine
from wire.host import end_with

_BYTES_PER_PIXEL = 24  # decoding and resizing take up to 16
_COPIES_OF_FILE = 6  # ours, Pillow's and libwebp's
_NICENESS = 10  # at 19 it got 1 % of a busy core, and its request missed the deadline


def main(fd: int, parent: int, limits: ImageLimits) -> None:
    end_with(parent)
    os.nice(_NICENESS)  # ordinary requests go first
    with open(fd, "rb") as file:
        data = file.read()
    max_bytes = _BYTES_PER_PIXEL * limits.max_pixels + _COPIES_OF_FILE * len(data)
    sandbox = "sandboxed" if confine(max_bytes) else "unprotected"
    try:
        rgb = decode_image(data, limits)
    except ImageError as error:
        sys.stdout.write(f"{sandbox} {error}\n")
        return
    sys.stdout.write(f"{sandbox}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        width, height, resample, *sides = map(int, line.split())
        crop = (sides[0], sides[1], sides[2], sides[3]) if sides else None
        sys.stdout.buffer.write(resize(rgb, (width, height), resample, crop).tobytes())
        sys.stdout.flush()


if __name__ == "__main__":
    _fd, _parent, _max_pixels, _max_side_px = map(int, sys.argv[1:])
    main(_fd, _parent, ImageLimits(_max_pixels, _max_side_px))
