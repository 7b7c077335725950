"""A crop is the part of the image around a box; the objects of a result have the texts of it."""

import pytest

from service.analysis.views import crop_around, objects_of, within
from tasks.results import (
    Instance,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
    TextResult,
)

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


def test_objects_have_the_text_that_fills_a_step() -> None:
    instance = Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, None)
    (found,) = objects_of(InstancesResult((instance,), True))
    assert (found.about.box, found.about.texts, found.score) == (instance.box, {"label": "a"}, 0.5)
    (region,) = objects_of(TextRegionsResult((TextRegion(QUAD, "exit", 0.25),), True))
    assert region.about.box == (0.0, 0.0, 4.0, 3.0)
    assert region.about.texts == {"text": "exit"}
    assert not list(objects_of(TextResult("a", True)))
