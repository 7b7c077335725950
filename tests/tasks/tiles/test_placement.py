"""A crop's result in pixels of the whole image."""

import numpy as np
import pytest

from tasks.results import (
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import decode_mask, encode_mask
from tasks.tiles.merging import placed

WHOLE_WH = (640, 480)
CROP = (100, 50, 140, 90)
QUAD = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0))


def test_boxes_rings_and_quads_come_back_in_pixels_of_the_whole() -> None:
    detections = DetectionsResult((Detection((1.0, 2.0, 3.5, 4.0), "a", 0.5),), True)
    assert placed(detections, CROP, WHOLE_WH) == DetectionsResult(
        (Detection((101.0, 52.0, 103.5, 54.0), "a", 0.5),), True
    )
    instances = InstancesResult(
        (Instance((1.0, 2.0, 3.0, 4.0), "a", 0.5, (((1.0, 2.0), (3.0, 2.0), (3.0, 4.0)),), None),),
        True,
    )
    (instance,) = placed(instances, CROP, WHOLE_WH).instances  # type: ignore[union-attr]
    assert instance.polygons == (((101.0, 52.0), (103.0, 52.0), (103.0, 54.0)),)
    regions = TextRegionsResult((TextRegion(QUAD, "a", 0.5),), True)
    (region,) = placed(regions, CROP, WHOLE_WH).text_regions  # type: ignore[union-attr]
    assert region.quad == ((100.0, 50.0), (104.0, 50.0), (104.0, 53.0), (100.0, 53.0))
    assert placed(TextResult("a", True), CROP, WHOLE_WH) == TextResult("a", True)


@pytest.mark.parametrize(
    "part",
    [
        np.s_[5:7, 10:30],
        np.s_[:, 3:9],  # runs that fill their columns, and touch each other
        np.s_[0:0, 0:0],
        np.s_[::2, ::3],
    ],
)
def test_a_mask_comes_back_as_a_mask_of_the_whole(part: tuple[slice, slice]) -> None:
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[part] = True
    instances = InstancesResult(
        (Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, encode_mask(mask)),), True
    )
    (instance,) = placed(instances, CROP, WHOLE_WH).instances  # type: ignore[union-attr]
    assert instance.mask is not None
    whole = decode_mask(instance.mask)
    assert whole.shape == (480, 640)
    assert np.array_equal(whole[50:90, 100:140], mask)
    assert whole.sum() == mask.sum()
