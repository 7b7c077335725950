"""The outlines of masks as annotation tools edit them: polygons of few points, without holes."""

from collections.abc import Iterator

from shapely import Polygon, contains_xy

from tasks.results import BoxXyxy, Instance, PointXy

_MIN_POINTS = 3  # per polygon


def outlines(instance: Instance) -> Iterator[Polygon]:
    """Yield each ring of an instance's polygons except holes."""
    rings = [Polygon(ring) for ring in instance.polygons or () if len(ring) >= _MIN_POINTS]
    for ring in rings:
        if sum(contains_xy(rings, *ring.exterior.coords[0])) % 2 == 0:
            yield ring


def simplified(ring: Polygon, tolerance_px: float) -> list[PointXy]:
    """Return the points of a ring, of which none is further than the tolerance from it."""
    return [(x, y) for x, y in ring.exterior.simplify(tolerance_px).coords[:-1]]


def corners(box: BoxXyxy) -> tuple[PointXy, PointXy, PointXy, PointXy]:
    x1, y1, x2, y2 = box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
