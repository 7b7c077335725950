"""A crop's pixels and answers are those of the part that it shows."""

import numpy as np
import pytest

from service.analysis.views import crop_around, objects_of, placed, within
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

WHOLE_WH = (640, 480)
CROP = (100, 50, 140, 90)
QUAD = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0))


@pytest.mark.parametrize(
    ("box", "margin", "crop"),
    [
        ((100.0, 50.0, 140.0, 90.0), 0.0, (100, 50, 140, 90)),
        ((100.2, 50.9, 139.1, 89.5), 0.0, (100, 50, 140, 90)),
        ((100.0, 50.0, 140.0, 90.0), 0.5, (80, 30, 160, 110)),
        ((0.0, 0.0, 640.0, 480.0), 1.0, (0, 0, 640, 480)),
        ((10.0, 10.0, 10.0, 10.0), 0.1, (10, 10, 11, 11)),
        ((640.0, 480.0, 640.0, 480.0), 0.1, (639, 479, 640, 480)),
        ((-9.0, -9.0, -5.0, -5.0), 0.0, (0, 0, 1, 1)),
    ],
)
def test_a_crop_is_the_box_and_its_margin_within_the_image(
    box: tuple[float, float, float, float], margin: float, crop: tuple[int, int, int, int]
) -> None:
    assert crop_around(box, margin, WHOLE_WH) == crop


def test_a_box_of_the_whole_is_one_of_the_crop() -> None:
    assert within((100.5, 60.0, 130.0, 95.0), CROP) == (0.5, 10.0, 30.0, 40.0)


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


def test_a_mask_comes_back_as_a_mask_of_the_whole() -> None:
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[5:7, 10:30] = True
    instances = InstancesResult(
        (Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, encode_mask(mask)),), True
    )
    (instance,) = placed(instances, CROP, WHOLE_WH).instances  # type: ignore[union-attr]
    assert instance.mask is not None
    whole = decode_mask(instance.mask)
    assert whole.shape == (480, 640)
    assert np.array_equal(whole[50:90, 100:140], mask)
    assert whole.sum() == mask.sum()


def test_objects_have_the_text_that_fills_a_step() -> None:
    instance = Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, None)
    (found,) = objects_of(InstancesResult((instance,), True))
    assert (found.about.box, found.about.texts, found.score) == (instance.box, {"label": "a"}, 0.5)
    (region,) = objects_of(TextRegionsResult((TextRegion(QUAD, "exit", 0.25),), True))
    assert region.about.box == (0.0, 0.0, 4.0, 3.0)
    assert region.about.texts == {"text": "exit"}
    assert not list(objects_of(TextResult("a", True)))
