"""The result about a part of an image, in pixels of the whole image."""

from dataclasses import replace

from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    PointXy,
    Result,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import place_mask
from tasks.tiles.grid import PixelBox


def placed(result: Result, crop: PixelBox, image_size_wh: tuple[int, int]) -> Result:
    """Return a crop's result in pixels of the whole image."""
    left, top, _, _ = crop

    def moved(point: PointXy) -> PointXy:
        return point[0] + left, point[1] + top

    def moved_box(box: BoxXyxy) -> BoxXyxy:
        return box[0] + left, box[1] + top, box[2] + left, box[3] + top

    def placed_detection(item: Detection) -> Detection:
        return replace(item, box=moved_box(item.box))

    def placed_instance(item: Instance) -> Instance:
        rings = item.polygons
        polygons = None if rings is None else tuple(tuple(map(moved, ring)) for ring in rings)
        mask = None if item.mask is None else place_mask(item.mask, (left, top), image_size_wh)
        return replace(item, box=moved_box(item.box), polygons=polygons, mask=mask)

    def placed_region(item: TextRegion) -> TextRegion:
        first, second, third, fourth = map(moved, item.quad)
        return replace(item, quad=(first, second, third, fourth))

    match result:
        case DetectionsResult():
            return replace(result, detections=tuple(map(placed_detection, result.detections)))
        case InstancesResult():
            return replace(result, instances=tuple(map(placed_instance, result.instances)))
        case TextRegionsResult():
            return replace(result, text_regions=tuple(map(placed_region, result.text_regions)))
        case TextResult():
            return result
