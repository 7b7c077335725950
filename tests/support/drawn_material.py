"""A material of things without Debian's packages: drawn glyphs, and the bundled font."""

from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from export.scenes.fonts import load_font
from laboratory.things.material import Material

_GLYPH_PX = 64


class DrawnMaterial(Material):
    """Draws each glyph as a triangle whose colour and corner depend on its name."""

    def __init__(self) -> None:
        pass

    def font(self, file: str, size_px: int) -> ImageFont.FreeTypeFont:
        """Return the bundled font."""
        return load_font("bold" if "Bold" in file else "regular", size_px)

    def characters(self, file: str) -> frozenset[str]:  # noqa: ARG002  # the real interface
        """Return every character of the alphabets: the font has most of them."""
        return frozenset(map(chr, range(32, 0x2000)))

    def emoji(self, emoji: str) -> Image.Image:
        """Return a triangle."""
        return _glyph(emoji)

    @cached_property
    def photographs(self) -> list[Image.Image]:
        """One picture of noise."""
        noise = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
        return [Image.fromarray(noise)]


@cache
def _glyph(emoji: str) -> Image.Image:
    number = sum(map(ord, emoji))
    image = Image.new("RGBA", (_GLYPH_PX, _GLYPH_PX))
    corner = number % _GLYPH_PX
    points = [(corner, 0), (_GLYPH_PX - 1, _GLYPH_PX - 1), (0, _GLYPH_PX - 1)]
    color = (number * 7 % 256, number * 11 % 256, number * 13 % 256, 255)
    ImageDraw.Draw(image).polygon(points, fill=color)
    return image.crop(image.getchannel("A").getbbox())
