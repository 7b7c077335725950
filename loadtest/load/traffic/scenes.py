"""Images of coloured shapes and a word, drawn here, so that a worker needs no files besides this
package.

A fresh image is a drawn one with a unique patch, so the service's vision cache cannot contain it.
Its JPEG encoding takes 2 ms for 640 x 480 on a core of an AMD EPYC, and is done before the request
is due.
"""

import io
import itertools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from loadtest.load.traffic.traffic_mix import Images

_NUM_DRAWN = 8  # scenes per size
_COLORS = ("red", "green", "blue", "orange", "purple", "yellow")
_BACKGROUNDS = ("white", "lightgray", "navy", "black")
_LETTERS = "ABCDEFGHKLMNPRSTUVXYZ"
_PATCH = 1 / 8  # share of a side: still visible after the resize for a model


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image file; a repeated one has a number."""

    jpeg: bytes
    size_wh: tuple[int, int]
    number: int | None


class Scenes:
    """An endless supply of images."""

    def __init__(self, images: Images, rng: random.Random) -> None:
        self._fresh = images.fresh
        self._weights = [size.weight for size in images.sizes]
        self._rng = rng
        numbers = itertools.count()
        self._drawn = list[list[Image.Image]]()  # one list per size
        self._known = list[list[SentImage]]()
        for size in images.sizes:
            drawn = [_draw(size.size_wh, rng) for _ in range(_NUM_DRAWN)]
            self._drawn.append(drawn)
            self._known.append([SentImage(_jpeg(one), one.size, next(numbers)) for one in drawn])

    def next(self) -> SentImage:
        """Return an image, its size chosen by weight."""
        (size,) = self._rng.choices(range(len(self._drawn)), self._weights)
        if self._rng.random() >= self._fresh:
            return self._rng.choice(self._known[size])
        image = self._rng.choice(self._drawn[size]).copy()
        width, height = (round(side * _PATCH) for side in image.size)
        x = self._rng.randrange(image.width - width)
        y = self._rng.randrange(image.height - height)
        image.paste(tuple(self._rng.randbytes(3)), (x, y, x + width, y + height))
        return SentImage(_jpeg(image), image.size, None)


def _draw(size_wh: tuple[int, int], rng: random.Random) -> Image.Image:
    """Return one to four shapes that may overlap, and a word."""
    image = Image.new("RGB", size_wh, rng.choice(_BACKGROUNDS))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 4)):
        radius = rng.uniform(0.1, 0.25) * min(size_wh)
        x, y = (rng.uniform(radius, side - radius) for side in size_wh)
        color = rng.choice(_COLORS)
        if sides := rng.choice((0, 3, 4)):
            draw.regular_polygon((x, y, radius), sides, fill=color)
        else:
            draw.circle((x, y), radius, fill=color)
    word = "".join(rng.choices(_LETTERS, k=rng.randint(2, 4)))
    corner = (rng.uniform(0, size_wh[0] * 0.6), rng.uniform(0, size_wh[1] * 0.8))
    draw.text(corner, word, fill="gray", font=ImageFont.load_default(min(size_wh) / 8))
    return image


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
