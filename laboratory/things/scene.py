"""The parts of a scene of things: background, things, an optional panel, lines of text.

Lengths are in pixels of the square canvas of `CANVAS_PX`. Truth follows what is visible, measured
at `RESOLUTION_PX`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import contourpy
import numpy as np
from numpy.typing import NDArray

from export.scenes.geometry import Point, Ring, ring_box_xyxy
from export.scenes.scene import CANVAS_PX, RGB, BoxXYXY, Brightness, Color, Size
from laboratory.things.catalogue import Thing

RESOLUTION_PX = 256
SCALE = RESOLUTION_PX / CANVAS_PX
MAX_THINGS = 12
MAX_POLYGON_POINTS = 20

Texture = Literal["plain", "gradient", "noisy", "texture", "photograph"]
Pixels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ThingBackground:
    """A colour, and what modulates it: nothing, a gradient, noise, waves or a photograph."""

    brightness: Brightness
    texture: Texture
    start_rgb: RGB
    end_rgb: RGB
    seed: int


@dataclass(frozen=True, slots=True)
class Pose:
    """How a thing's glyph is drawn: around its centre, as large as its longer side."""

    center_xy: Point
    side_px: float
    angle_deg: float
    is_mirrored: bool
    hue_shift: int  # 256 is a whole turn
    brightness_factor: float


@dataclass(frozen=True)
class PlacedThing:
    """A thing with what can be said of it and its visible part."""

    thing: Thing
    color: Color | None
    size: Size
    pose: Pose
    layer: int  # drawn over lower ones
    visible: Pixels  # (H, W) at `RESOLUTION_PX`, cropped to the box
    box_xyxy: BoxXYXY

    @property
    def name(self) -> str:
        """`cat`, or `red car` of a thing whose colour changes."""
        return f"{self.color} {self.thing.name}" if self.color else self.thing.name

    @property
    def description(self) -> str:
        """`small red car`."""
        return f"{self.size} {self.name}"

    @cached_property
    def outline_xy(self) -> Ring:
        """The outline of the largest visible piece, clockwise from its top."""
        padded = np.pad(self.visible.astype(np.float32), 1)
        rings = [np.asarray(ring) for ring in contourpy.contour_generator(z=padded).lines(0.5)]
        largest = max(rings, key=lambda ring: abs(_twice_area(ring)))[:-1]
        if _twice_area(largest) < 0:
            largest = largest[::-1]
        start = int(largest[:, 1].argmin())
        # The index of a pixel is half a pixel before its centre; the pad is one pixel.
        points = (np.roll(largest, -start, axis=0) - 0.5) / SCALE + self.box_xyxy[:2]
        return tuple((float(x), float(y)) for x, y in points)

    @cached_property
    def polygon_xy(self) -> Ring:
        """The outline with at most `MAX_POLYGON_POINTS`: a model's answer.

        The point whose triangle with its neighbours is smallest goes first (Visvalingam, 1993).
        """
        points = list(self.outline_xy)
        areas = [_triangle(points, index) for index in range(len(points))]
        while len(points) > MAX_POLYGON_POINTS:
            index = int(np.argmin(areas))
            del points[index], areas[index]
            for neighbour in (index - 1, index % len(points)):
                areas[neighbour] = _triangle(points, neighbour)
        start = min(range(len(points)), key=lambda index: points[index][1])
        return tuple(points[start:] + points[:start])


def _twice_area(ring: NDArray[np.float64]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]).sum())


def _triangle(points: list[Point], index: int) -> float:
    ax, ay = points[index - 1]
    bx, by = points[index]
    cx, cy = points[(index + 1) % len(points)]
    return abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay))


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of text; its ink is turned around its centre."""

    text: str
    font_file: str
    font_size_px: float
    rgb: RGB
    center_xy: Point
    size_wh: tuple[float, float]  # ink before turning
    angle_deg: float
    quad_xy: Ring
    characters: tuple[tuple[str, BoxXYXY], ...]  # all of the text, in order

    @property
    def box_xyxy(self) -> BoxXYXY:
        """The smallest upright box around the turned ink."""
        return ring_box_xyxy(self.quad_xy)


@dataclass(frozen=True, slots=True)
class Panel:
    """A plain rectangle behind lines: a sign, a receipt or a form."""

    box_xyxy: BoxXYXY
    rgb: RGB


@dataclass(frozen=True, slots=True)
class ThingScene:
    """Things, ordered left to right by their boxes, and lines in reading order."""

    seed: int
    background: ThingBackground
    panel: Panel | None
    things: tuple[PlacedThing, ...]
    lines: tuple[TextLine, ...]
