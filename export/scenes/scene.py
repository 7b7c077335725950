"""The parts of a scene: background, coloured shapes, at most one word.

Every length is in pixels of a square canvas of `CANVAS_PX`; images and true answers are scaled from
there.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Color = Literal["red", "green", "blue", "yellow", "purple", "orange"]
Shape = Literal["circle", "square", "triangle", "star"]
Size = Literal["small", "large"]
Brightness = Literal["dark", "light"]
Texture = Literal["plain", "gradient", "noisy"]
FontFace = Literal["regular", "bold", "pillow"]
RGB = tuple[int, int, int]
BoxXYXY = tuple[float, float, float, float]

COLORS: tuple[Color, ...] = get_args(Color)
SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
CANVAS_PX = 192


@dataclass(frozen=True, slots=True)
class Background:
    """A plain colour, a gradient along `angle_rad`, or a colour with ± `noise_amplitude`."""

    brightness: Brightness
    texture: Texture
    start_rgb: RGB
    end_rgb: RGB
    angle_rad: float
    noise_amplitude: int
    noise_seed: int


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One coloured shape; `radius_px` is half its width (a star's: from the centre to a tip)."""

    color: Color
    shape: Shape
    size: Size
    rgb: RGB
    center_xy: tuple[float, float]
    radius_px: float

    @property
    def name(self) -> str:
        """`red circle`."""
        return f"{self.color} {self.shape}"

    @property
    def description(self) -> str:
        """`small red circle`."""
        return f"{self.size} {self.name}"


@dataclass(frozen=True, slots=True)
class Word:
    """Upright text; `box_xyxy` is the box of its ink."""

    text: str
    font_face: FontFace
    font_size_px: int
    box_xyxy: BoxXYXY


@dataclass(frozen=True, slots=True)
class Scene:
    """A background with objects, ordered left to right by their centres, and an optional word."""

    seed: int
    background: Background
    objects: tuple[SceneObject, ...]
    word: Word | None
