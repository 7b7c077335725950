"""Outlines for tools whose polygons have no holes and few points; imports shapely."""

from collections.abc import Iterable

from shapely import LinearRing, Polygon, contains_xy

from diptych_client.geometry import Ring

_MIN_POINTS = 3  # a ring with fewer encloses nothing


def outer_rings(rings: Iterable[Ring]) -> list[Ring]:
    """Return the rings that are not holes: an even number of others encloses the first point."""
    enclosing = [ring for ring in rings if len(ring) >= _MIN_POINTS]
    polygons = [Polygon(ring) for ring in enclosing]
    return [ring for ring in enclosing if sum(contains_xy(polygons, *ring[0])) % 2 == 0]


def simplified_ring(ring: Ring, tolerance_px: float) -> Ring:
    """Return the ring without points that are within the tolerance of a line between others."""
    if len(ring) <= _MIN_POINTS:
        return ring
    return tuple((x, y) for x, y in LinearRing(ring).simplify(tolerance_px).coords[:-1])
