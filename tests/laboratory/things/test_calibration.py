"""The images of things for `diptych evaluate`: a label lies where its thing was drawn."""

import io
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image

from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.coco_scenes import Labelled
from laboratory.things import calibration
from tests.support.drawn_material import DrawnMaterial

MAGENTA = (255, 0, 255)


class Rectangles(DrawnMaterial):
    """Draws every glyph as a rectangle of a colour that no background has."""

    def emoji(self, emoji: str) -> Image.Image:  # noqa: ARG002  # the real interface
        """Return the rectangle."""
        return Image.new("RGBA", (64, 48), (*MAGENTA, 255))


def test_boxes_of_scenes_are_in_pixels_of_each_condition() -> None:
    conditions = [CONDITIONS["plain"], CONDITIONS["stretched"]]
    plain, stretched = calibration.scenes(DrawnMaterial(), conditions, [0])
    assert (plain[0].size_wh, stretched[0].size_wh) == ((384, 384), (576, 384))
    for (label, box), (same, wider) in zip(plain[1], stretched[1], strict=True):
        assert label == same
        assert wider == pytest.approx((1.5 * box[0], box[1], 1.5 * box[2], box[3]))


def test_every_tenth_scene_has_no_label() -> None:
    *_, last = calibration.scenes(DrawnMaterial(), [CONDITIONS["small"]], range(10))
    assert last[1] == []


def test_only_asked_names_are_labels_and_half_of_the_things_are_others() -> None:
    material = DrawnMaterial()
    data = calibration.asked_set(material)
    found = list(data.scenes([CONDITIONS["plain"], CONDITIONS["small"]], range(40)))
    labels = list[str]()
    for _, objects in found:
        labels += [label for label, _ in objects]
    assert set(labels) <= set(calibration.ASKED)
    assert 0.3 < len(labels) / (80 * 2.5) < 0.7  # each image has one to four things
    for (plain, boxes), (small, same) in zip(found[::2], found[1::2], strict=True):
        factor = small.size_wh[0] / plain.size_wh[0]
        for (_, box), (_, smaller) in zip(boxes, same, strict=True):
            assert smaller == pytest.approx(np.multiply(box, factor))


@pytest.mark.parametrize(
    ("images", "nums"),
    [
        (calibration.scenes_of_all_sizes(Rectangles(), 3), {1, 2, 3, 4}),
        (calibration.large_images(Rectangles(), 1, 1, (1000, 600)), {2, 0}),
    ],
)
def test_boxes_hold_all_ink_of_their_things_and_nothing_else(
    images: Iterable[Labelled], nums: set[int]
) -> None:
    for image, objects in images:
        pixels = np.asarray(Image.open(io.BytesIO(image.data)))
        is_ink = (pixels == MAGENTA).all(axis=2)
        num_inside = 0
        for _, (left, top, right, bottom) in objects:
            inside = is_ink[int(top) : int(bottom), int(left) : int(right)]
            assert inside.all()
            num_inside += inside.size
        assert num_inside == is_ink.sum()
        assert len(objects) in nums
