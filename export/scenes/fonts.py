"""Fonts of a scene's word: DejaVu Sans, bundled so that it renders alike everywhere, and Pillow's
own.
"""

from functools import lru_cache
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from export.scenes.scene import FontFace

_FOLDER = Path(__file__).with_name("dejavu")
_FONT_FILES: dict[FontFace, str] = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}


class FontMissingError(RuntimeError):
    """Pillow was built without FreeType."""


@lru_cache(maxsize=128)
def load_font(font_face: FontFace, font_size_px: float) -> ImageFont.FreeTypeFont:
    """Return the font at a size; raise `FontMissingError` if Pillow has no scalable font."""
    if font_face != "pillow":
        return ImageFont.truetype(_FOLDER / _FONT_FILES[font_face], font_size_px)
    font = ImageFont.load_default(font_size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise FontMissingError("Pillow's scalable default font needs a Pillow built with FreeType")
    return font


def ink_mask(text: str, font_face: FontFace, font_size_px: float) -> Image.Image:
    """Return the text's coverage (0 to 255), cropped to its ink: the font's box is wider."""
    font = load_font(font_face, font_size_px)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    canvas = Image.new("L", (ceil(right - left), ceil(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=255, font=font, anchor="ls")
    return canvas.crop(canvas.getbbox())
