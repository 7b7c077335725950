"""Draws answers on their image: boxes, quads, masks with outlines, and text below.

Knows no service.

Within a picture each label has one colour, also across the panels of a comparison.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from diptych_client.geometry import Ring
from diptych_client.results import (
    Answer,
    Comparison,
    Instance,
    Item,
    ModelFailure,
    TextRegion,
    TextResult,
    box_of,
    items_of,
    label_of,
)

Color = tuple[int, int, int]
Colors = Mapping[str, Color]

# Okabe and Ito, distinguishable with colour blindness; without black
PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (240, 228, 66),
)
_MASK_OPACITY = 0.45
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


def open_upright(path: Path) -> Image.Image:
    """Open an image upright, by its EXIF orientation: the frame of an answer's coordinates."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def draw_answer(image: Image.Image, answer: Answer) -> Image.Image:
    """Return a copy of the upright image with the answer drawn on it and a text result below it."""
    return _panel(image, answer, _colors(items_of(answer.result)))


def draw_comparison(image: Image.Image, comparison: Comparison) -> Image.Image:
    """Return a picture with one panel for each model, side by side."""
    results = [answer.result for answer in comparison.answers if isinstance(answer, Answer)]
    colors = _colors(chain.from_iterable(map(items_of, results)))
    panels = [_panel(image, answer, colors) for answer in comparison.answers]
    gap = _line_width(image) * 4
    width = sum(panel.width + gap for panel in panels) - gap
    picture = Image.new("RGB", (width, max(panel.height for panel in panels)), _WHITE)
    for index, panel in enumerate(panels):
        picture.paste(panel, (index * (panel.width + gap), 0))
    return picture


def _colors(items: Iterable[Item]) -> Colors:
    labels = dict.fromkeys(map(label_of, items))
    return {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}


def _panel(image: Image.Image, answer: Answer | ModelFailure, colors: Colors) -> Image.Image:
    if isinstance(answer, ModelFailure):
        return _with_text(image, answer.model, f"{answer.error.code}: {answer.error.message}")
    picture = image.convert("RGB")
    items = items_of(answer.result)
    for item in items:
        if isinstance(item, Instance):
            mask = item.to_mask(answer.image) * (_MASK_OPACITY * 255)
            picture.paste(colors[label_of(item)], mask=Image.fromarray(mask.astype(np.uint8)))
        _draw_item(picture, item, colors[label_of(item)])
    text = "" if items else "nothing found"
    if isinstance(answer.result, TextResult):
        text = answer.result.text
    return _with_text(picture, answer.model, text)


def _draw_item(picture: Image.Image, item: Item, color: Color) -> None:
    """Draw the outlines, and the label above the first corner if it fits, else below."""
    x1, y1, x2, y2 = box_of(item)
    outlines: Sequence[Ring] = [((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    if isinstance(item, TextRegion):
        outlines = [item.quad_xy]
    elif isinstance(item, Instance) and item.polygons_xy:
        outlines = item.polygons_xy
    draw = ImageDraw.Draw(picture)
    for ring in outlines:
        draw.line([*ring, ring[0]], fill=color, width=_line_width(picture), joint="curve")
    x, y = item.quad_xy[0] if isinstance(item, TextRegion) else (x1, y1)
    font = _font(picture)
    tag = f"{label_of(item)} {item.score:.2f}".strip()
    left, top, right, bottom = draw.textbbox((0, 0), tag, font=font)
    height = bottom - top + 4
    y = y - height if y >= height else y
    draw.rectangle((x, y, x + right - left + 4, y + height), fill=color)
    draw.text((x + 2 - left, y + 2 - top), tag, fill=_BLACK, font=font)


def _with_text(picture: Image.Image, title: str, text: str) -> Image.Image:
    font = _font(picture)
    line_height = round(font.size * 1.4)
    num_columns = max(10, round(picture.width / (font.size * 0.55)))
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines += wrap(paragraph, num_columns)
    y = line_height + picture.height
    panel = Image.new("RGB", (picture.width, y + len(lines) * line_height), _WHITE)
    panel.paste(picture, (0, line_height))
    draw = ImageDraw.Draw(panel)
    draw.text((4, 0), title, fill=_BLACK, font=font)
    for line in lines:
        draw.text((4, y), line, fill=_BLACK, font=font)
        y += line_height
    return panel


def _font(picture: Image.Image) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(12, min(picture.size) // 30))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _line_width(picture: Image.Image) -> int:
    return max(2, min(picture.size) // 200)
