"""Outlines and boxes of a scene's objects and word, in pixels of its canvas.

y grows downwards. Points run clockwise as seen, from the top or the top left corner.
"""

from math import cos, pi, sin

from export.scenes.scene import BoxXYXY, SceneObject

Point = tuple[float, float]
Ring = tuple[Point, ...]

STAR_INNER_RADIUS = 0.45
NUM_CIRCLE_POINTS = 12
NUM_SMOOTH_POINTS = 72

_UNIT_SQUARE: Ring = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
_UNIT_TRIANGLE: Ring = ((0.0, -1.0), (1.0, 1.0), (-1.0, 1.0))


def _points_around(radii: tuple[float, ...]) -> Ring:
    step = 2 * pi / len(radii)
    return tuple(
        (radius * sin(step * i), -radius * cos(step * i)) for i, radius in enumerate(radii)
    )


_UNIT_RINGS = {
    "circle": _points_around((1.0,) * NUM_CIRCLE_POINTS),
    "square": _UNIT_SQUARE,
    "triangle": _UNIT_TRIANGLE,
    "star": _points_around((1.0, STAR_INNER_RADIUS) * 5),
}
_UNIT_OUTLINES = _UNIT_RINGS | {"circle": _points_around((1.0,) * NUM_SMOOTH_POINTS)}


def polygon_xy(scene_object: SceneObject) -> Ring:
    """Return the polygon that a model is trained to answer; a circle has 12 points."""
    return _placed(_UNIT_RINGS[scene_object.shape], scene_object)


def outline_xy(scene_object: SceneObject) -> Ring:
    """Return the outline as it is drawn, with a smooth circle."""
    return _placed(_UNIT_OUTLINES[scene_object.shape], scene_object)


def box_xyxy(scene_object: SceneObject) -> BoxXYXY:
    """Return the smallest upright box around the object."""
    return ring_box_xyxy(polygon_xy(scene_object))


def ring_box_xyxy(ring: Ring) -> BoxXYXY:
    """Return the smallest upright box around the points."""
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def quad_xy(box: BoxXYXY) -> Ring:
    """Return the corners of a box: top left, top right, bottom right, bottom left."""
    left, top, right, bottom = box
    return (left, top), (right, top), (right, bottom), (left, bottom)


def are_apart(first: BoxXYXY, second: BoxXYXY, gap_px: float) -> bool:
    """Return True if a strip of at least `gap_px` separates the two boxes."""
    horizontal = max(second[0] - first[2], first[0] - second[2])
    vertical = max(second[1] - first[3], first[1] - second[3])
    return max(horizontal, vertical) >= gap_px


def _placed(unit_ring: Ring, scene_object: SceneObject) -> Ring:
    center_x, center_y = scene_object.center_xy
    radius = scene_object.radius_px
    return tuple((center_x + radius * x, center_y + radius * y) for x, y in unit_ring)
