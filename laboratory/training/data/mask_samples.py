"""Random masks for the autoencoder: the scenes' shapes, rotated and stretched shapes, blobs, masks
with holes or cuts.

Each is cropped to its tight box and resized to 64 x 64, as before encoding to segmentation tokens.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from export.scenes import SHAPES, Point, Ring, SceneObject, Shape, outline_xy, ring_box_xyxy

Masks = NDArray[np.float32]

MASK_SIDE = 64

_SUPERSAMPLING = 4
_FINE_SIDE = MASK_SIDE * _SUPERSAMPLING
_MAX_STRETCH = 2.0
_HOLE_SCALES = (0.3, 0.6)
_MAX_CUT = 0.6  # share of the width or height that is cut off
_NUM_BLOB_POINTS = 64
_BLOB_WAVES = 5
_BLOB_DEPTH = 0.3  # depth of the first wave, in the logarithm of the radius


def shape_mask(shape: Shape) -> Masks:
    """Return the mask (64, 64) of a scene's shape in its tight box: the coverage of each pixel."""
    return _cropped(_filled(_shape_ring(shape)))


def sample_masks(rng: np.random.Generator, num_masks: int) -> Masks:
    """Sample masks (B, 1, 64, 64), 0 outside to 1 inside."""
    kinds = rng.choice(len(_KINDS), num_masks, p=_SHARES)
    return np.stack([_cropped(_KINDS[kind](rng)) for kind in kinds])[:, None]


def _mask_with_hole(rng: np.random.Generator) -> Image.Image:
    """Return a shape or blob with a hole: a smaller copy of itself at its centre."""
    ring = _any_ring(rng)
    scale = rng.uniform(*_HOLE_SCALES)
    outer = _in_fine_box(ring)
    middle = np.mean(outer, axis=0)
    inner = tuple(tuple(middle + scale * (np.asarray(point) - middle)) for point in outer)
    image = _filled(ring)
    ImageDraw.Draw(image).polygon(inner, fill=0)
    return image


def _cut_mask(rng: np.random.Generator) -> Image.Image:
    """Return a shape or blob cut along a line, as by another object or the image border."""
    image = _filled(_any_ring(rng))
    angle = rng.choice((0, 0.5, 1, 1.5)) * pi if rng.random() < 0.5 else rng.uniform(0, 2 * pi)
    offset = (0.5 - rng.uniform(0.05, _MAX_CUT)) * _FINE_SIDE
    # a rectangle that covers all beyond `offset` from the centre towards `angle`
    middle = _FINE_SIDE / 2
    far = 2.0 * _FINE_SIDE
    corners = ((offset, -far), (far, -far), (far, far), (offset, far))
    rotated = (_rotated(corner, angle) for corner in corners)
    ImageDraw.Draw(image).polygon([(middle + x, middle + y) for x, y in rotated], fill=0)
    return image


_KINDS: tuple[Callable[[np.random.Generator], Image.Image], ...] = (
    lambda rng: _filled(_shape_ring(_any_shape(rng))),
    lambda rng: _filled(_turned(_shape_ring(_any_shape(rng)), rng)),
    lambda rng: _filled(_blob_ring(rng)),
    _mask_with_hole,
    _cut_mask,
)
_SHARES = (0.15, 0.3, 0.25, 0.1, 0.2)


def _any_shape(rng: np.random.Generator) -> Shape:
    return SHAPES[rng.integers(len(SHAPES))]


def _any_ring(rng: np.random.Generator) -> Ring:
    """Sample a plain shape, a rotated one or a blob."""
    kind = rng.integers(3)
    if kind == 2:
        return _blob_ring(rng)
    ring = _shape_ring(_any_shape(rng))
    return _turned(ring, rng) if kind == 1 else ring


def _shape_ring(shape: Shape) -> Ring:
    return outline_xy(
        SceneObject("red", shape, "large", (0, 0, 0), center_xy=(0.0, 0.0), radius_px=1.0)
    )


def _turned(ring: Ring, rng: np.random.Generator) -> Ring:
    """Stretch a ring along one axis, then rotate it."""
    stretch = rng.uniform(1, _MAX_STRETCH)
    angle = rng.uniform(0, 2 * pi)
    return tuple(_rotated((x * stretch, y), angle) for x, y in ring)


def _rotated(point: Point, angle: float) -> Point:
    x, y = point
    return x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)


def _blob_ring(rng: np.random.Generator) -> Ring:
    """Sample a smooth outline: a circle whose log radius is a sum of random waves."""
    waves = np.arange(1, _BLOB_WAVES + 1)
    sizes = rng.normal(0, _BLOB_DEPTH, _BLOB_WAVES) / np.sqrt(waves)
    phases = rng.uniform(0, 2 * pi, _BLOB_WAVES)
    angles = np.linspace(0, 2 * pi, _NUM_BLOB_POINTS, endpoint=False)
    radii = np.exp((sizes * np.sin(angles[:, None] * waves + phases)).sum(1))
    return tuple(
        zip((radii * np.cos(angles)).tolist(), (radii * np.sin(angles)).tolist(), strict=True)
    )


def _in_fine_box(ring: Ring) -> Ring:
    """Stretch the ring to the fine canvas; Pillow's pixel positions are indices, not centres."""
    left, top, right, bottom = ring_box_xyxy(ring)
    scale_x = _FINE_SIDE / (right - left)
    scale_y = _FINE_SIDE / (bottom - top)
    return tuple(((x - left) * scale_x - 0.5, (y - top) * scale_y - 0.5) for x, y in ring)


def _filled(ring: Ring) -> Image.Image:
    image = Image.new("L", (_FINE_SIDE, _FINE_SIDE))
    ImageDraw.Draw(image).polygon(_in_fine_box(ring), fill=255)
    return image


def _cropped(fine: Image.Image) -> Masks:
    small = fine.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX, box=fine.getbbox())
    return np.asarray(small, np.float32) / np.float32(255)
