"""Places a scene's lines of text: free lines, and signs, receipts and forms on a panel.

All sizes are measured with the fonts at `RESOLUTION_PX`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, exp, log, radians, sin

from numpy.random import Generator

from export.scenes.geometry import Point
from export.scenes.scene import CANVAS_PX, RGB, BoxXYXY
from laboratory.things.material import FONTS, Material
from laboratory.things.scene import SCALE, Panel, TextLine
from laboratory.things.wording import (
    ALPHABETS,
    MAX_WORDS,
    form_line,
    free_line,
    receipt_line,
)

_FONT_SIZES_PX = (10.0, 60.0)  # measured in an image of `RESOLUTION_PX`
_LINE_PITCHES = (1.25, 1.7)  # times the font size
_EDGE_PX = 3.0
_PADDING_PX = 5.0
_MAX_SIDE_PX = CANVAS_PX - 2 * (_EDGE_PX + _PADDING_PX)
_MAX_ANGLE_DEG = 7.0
_ENGLISH_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Measured:
    """A line's ink around the origin of its baseline, in pixels of the canvas."""

    text: str
    box_xyxy: BoxXYXY
    edges_x: tuple[float, ...]  # left edge of each character, and the end


def place_lines(
    rng: Generator, material: Material, num: int, is_light: bool, has_held_out_fonts: bool
) -> tuple[Panel | None, tuple[TextLine, ...]]:
    """Return up to `num` lines in one font, in reading order, and what is behind them."""
    if not num:
        return None, ()
    files = [font.file for font in FONTS if font.is_held_out == has_held_out_fonts]
    file = files[int(rng.integers(len(files)))]
    letters = letters_of_font(rng, material.characters(file))
    layout = ("free", "sign", "receipt", "form")[int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))]
    texts = sample_texts(rng, layout, letters, num)
    smallest, largest = map(log, _FONT_SIZES_PX)
    size = round(exp(rng.uniform(smallest, largest)))
    pitch = float(rng.uniform(*_LINE_PITCHES))
    size, measured = fitted_lines(material, file, size, pitch, texts)
    step = pitch * size / SCALE
    width = max(line.box_xyxy[2] - line.box_xyxy[0] for line in measured)
    height = step * (len(measured) - 1) + measured[-1].box_xyxy[3] - measured[0].box_xyxy[1]
    margin = _EDGE_PX + _PADDING_PX
    left = float(rng.uniform(margin, max(margin, CANVAS_PX - margin - width)))
    top = float(rng.uniform(margin, max(margin, CANVAS_PX - margin - height)))
    panel = None
    if layout != "free":
        box = (left - _PADDING_PX, top - _PADDING_PX, left + width + _PADDING_PX)
        is_light = layout != "sign" or rng.random() < 0.5
        panel = Panel((*box, top + height + _PADDING_PX), _shade(rng, is_light))
    is_turned = layout == "free" and len(measured) == 1 and rng.random() < 0.5
    angle = float(rng.uniform(-_MAX_ANGLE_DEG, _MAX_ANGLE_DEG)) if is_turned else 0.0
    rgb = _shade(rng, not is_light) if rng.random() < 0.4 else ((0,) * 3, (255,) * 3)[not is_light]
    baseline = top - measured[0].box_xyxy[1]
    lines = []
    for index, line in enumerate(measured):
        shift = (width - (line.box_xyxy[2] - line.box_xyxy[0])) / 2 if layout == "sign" else 0.0
        origin = (left + shift - line.box_xyxy[0], baseline + index * step)
        lines.append(_line(line, file, size / SCALE, rgb, origin, angle))
    return panel, tuple(lines)


def letters_of_font(rng: Generator, available: frozenset[str]) -> str:
    """Return the letters of English, or of another language that the font can write."""
    if rng.random() < _ENGLISH_SHARE:
        return ""
    written = [letters for letters in ALPHABETS.values() if available.issuperset(letters.upper())]
    return written[int(rng.integers(len(written)))]


def sample_texts(rng: Generator, layout: str, letters: str, num: int) -> list[str]:
    if layout == "receipt":
        return [receipt_line(rng, letters) for _ in range(num)]
    if layout == "form":
        return [form_line(rng, letters) for _ in range(num)]
    most = max(1, MAX_WORDS // num)
    return [free_line(rng, letters, int(rng.integers(1, min(4, most) + 1))) for _ in range(num)]


def _shade(rng: Generator, is_light: bool) -> RGB:
    lowest, highest = (175, 256) if is_light else (0, 90)
    red, green, blue = rng.integers(lowest, highest, 3).tolist()
    return red, green, blue


def fitted_lines(
    material: Material, file: str, size: int, pitch: float, texts: Sequence[str]
) -> tuple[int, list[_Measured]]:
    """Return the lines at the largest size up to `size` that fits; at the smallest, cut them."""
    smallest = round(_FONT_SIZES_PX[0])
    kept = list(texts)
    while True:
        measured = [_measured(material, file, size, text) for text in kept]
        width = max(line.box_xyxy[2] - line.box_xyxy[0] for line in measured)
        height = (len(kept) + 0.5) * pitch * size / SCALE
        excess = max(width, height) / _MAX_SIDE_PX
        if excess <= 1:
            return size, measured
        if size > smallest:
            size = max(smallest, min(size - 1, int(size / excess)))
        elif height > width and len(kept) > 1:
            kept.pop()
        else:
            kept = [text[: max(1, int(len(text) / excess))].strip() for text in kept]


def _measured(material: Material, file: str, size: int, text: str) -> _Measured:
    font = material.font(file, size)
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    edges = tuple(font.getlength(text[:index]) / SCALE for index in range(len(text) + 1))
    box = (left / SCALE, top / SCALE, right / SCALE, bottom / SCALE)
    return _Measured(text, box, edges)


def _line(
    measured: _Measured, file: str, size_px: float, rgb: RGB, origin: Point, angle: float
) -> TextLine:
    left, top, right, bottom = measured.box_xyxy
    half_wh = ((right - left) / 2, (bottom - top) / 2)
    cosine = cos(radians(angle))
    sine = sin(radians(angle))
    reach_x = half_wh[0] * cosine + half_wh[1] * abs(sine)
    reach_y = half_wh[1] * cosine + half_wh[0] * abs(sine)
    center = (
        _within_canvas(origin[0] + (left + right) / 2, reach_x),
        _within_canvas(origin[1] + (top + bottom) / 2, reach_y),
    )

    def turned(x: float, y: float) -> Point:
        return center[0] + x * cosine + y * sine, center[1] - x * sine + y * cosine

    corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    characters = []
    for index, character in enumerate(measured.text):
        start, end = measured.edges_x[index : index + 2]
        x, y = turned((start + end) / 2 - (left + right) / 2, 0.0)
        half = (end - start) / 2
        characters.append((character, (x - half, y - half_wh[1], x + half, y + half_wh[1])))
    return TextLine(
        measured.text,
        file,
        size_px,
        rgb,
        center,
        (2 * half_wh[0], 2 * half_wh[1]),
        angle,
        tuple(turned(x * half_wh[0], y * half_wh[1]) for x, y in corners),
        tuple(characters),
    )


def _within_canvas(middle_px: float, reach_px: float) -> float:
    """Return the middle moved so far that turned ink stays off the canvas's edge."""
    return min(max(middle_px, _EDGE_PX + reach_px), CANVAS_PX - _EDGE_PX - reach_px)
