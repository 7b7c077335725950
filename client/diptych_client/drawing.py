"""Draws answers on their image: boxes, quads, masks with outlines, and model and text below.

Within a picture each label has one colour, also across the panels of a comparison.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from diptych_client.conversion import read_image_file, rgb_of
from diptych_client.geometry import Ring, corners
from diptych_client.results import (
    Answer,
    Comparison,
    Instance,
    Item,
    ModelFailure,
    TextRegion,
    TextResult,
    score_text,
)

Color = tuple[int, ...]  # RGB
Colors = Mapping[str, Color]

# Okabe and Ito, distinguishable with colour blindness; without black
_HEX_COLORS = "#56b4e9 #e69f00 #009e73 #d55e00 #cc79a7 #0072b2 #f0e442"
PALETTE = tuple(map(ImageColor.getrgb, _HEX_COLORS.split()))
_MASK_OPACITY = 0.45


def open_upright(path: Path) -> Image.Image:
    """Open an image upright, by its EXIF orientation: the frame of an answer's coordinates."""
    with Image.open(io.BytesIO(read_image_file(Path(path)))) as image:
        return rgb_of(ImageOps.exif_transpose(image))


def draw_answer(image: Image.Image, answer: Answer) -> Image.Image:
    """Return a copy of the upright image with the answer drawn on it, model and text below it."""
    return _panel(image, answer, _colors(answer.result.items))


def draw_comparison(image: Image.Image, comparison: Comparison) -> Image.Image:
    """Return a picture with one panel for each model, side by side."""
    items: list[Item] = []
    for answer in comparison.answers:
        if isinstance(answer, Answer):
            items += answer.result.items
    colors = _colors(items)
    panels = [_panel(image, answer, colors) for answer in comparison.answers]
    step = image.width + _line_width(image) * 4
    height = max(panel.height for panel in panels)
    picture = Image.new("RGB", (step * (len(panels) - 1) + image.width, height), "white")
    for index, panel in enumerate(panels):
        picture.paste(panel, (index * step, 0))
    return picture


def _colors(items: Iterable[Item]) -> Colors:
    return dict(zip(dict.fromkeys(item.label for item in items), cycle(PALETTE), strict=False))


def _panel(image: Image.Image, answer: Answer | ModelFailure, colors: Colors) -> Image.Image:
    if isinstance(answer, ModelFailure):
        return _with_text(image, f"{answer.model}\n{answer.error.code}: {answer.error.message}")
    picture = image.convert("RGB")
    items = answer.result.items
    for item in items:
        if isinstance(item, Instance):
            mask = item.to_mask(answer.image) * (_MASK_OPACITY * 255)
            picture.paste(colors[item.label], mask=Image.fromarray(mask.astype(np.uint8)))
        _draw_item(picture, item, colors[item.label])
    text = "" if items else "nothing found"
    if isinstance(answer.result, TextResult):
        text = answer.result.text
    return _with_text(picture, f"{answer.model}\n{text}")


def _draw_item(picture: Image.Image, item: Item, color: Color) -> None:
    """Draw the outlines, and the label above the box, or at the upper edge of the picture."""
    draw = ImageDraw.Draw(picture)
    outlines: Sequence[Ring] = [corners(item.box_xyxy)]
    if isinstance(item, TextRegion):
        outlines = [item.quad_xy]
    elif isinstance(item, Instance) and item.polygons_xy:
        outlines = item.polygons_xy
    for ring in outlines:
        draw.line([*ring, ring[0]], fill=color, width=_line_width(picture), joint="curve")
    x, y, _, _ = item.box_xyxy
    tag = " ".join(f"{item.label} {score_text(item)}".split())  # one line
    font = _font(picture)
    background = draw.textbbox((x, max(y, font.size * 1.4)), tag, font=font, anchor="lb")
    draw.rectangle(background, fill=color)
    draw.text(background[:2], tag, fill="black", font=font, anchor="lt")


def _with_text(picture: Image.Image, text: str) -> Image.Image:
    font = _font(picture)
    num_columns = max(10, round(picture.width / (font.size * 0.55)))
    wrapped = "\n".join(fill(line, num_columns) for line in text.splitlines())
    _, _, _, text_height = ImageDraw.Draw(picture).multiline_textbbox((0, 0), wrapped, font=font)
    panel = Image.new("RGB", (picture.width, picture.height + round(text_height) + 4), "white")
    panel.paste(picture)
    ImageDraw.Draw(panel).multiline_text((4, picture.height), wrapped, fill="black", font=font)
    return panel


def _font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(12, min(picture.size) // 30))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _line_width(picture: Image.Image) -> int:
    return max(2, min(picture.size) // 200)
