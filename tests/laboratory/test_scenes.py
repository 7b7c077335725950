"""Datasets of rendered scenes."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from export.scenes import box_xyxy, render_scene
from laboratory.calibration import difficult_scenes, images_of_all_sizes, large_images
from laboratory.scenes import evaluation_scene, labelled, write_coco


def test_coco_labels_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    objects = evaluation_scene(3).objects
    image = render_scene(evaluation_scene(3), 384).resize((576, 384))
    write_coco(tmp_path / "scenes", [labelled(image, objects)] * 2)
    coco = COCO(tmp_path / "scenes" / "annotations.json")
    row = coco.imgs[1]
    with Image.open(tmp_path / "scenes" / "images" / row["file_name"]) as file:
        assert file.size == (row["width"], row["height"]) == (576, 384)
    for annotation, drawn in zip(coco.loadAnns(coco.getAnnIds([1])), objects, strict=True):
        left, top, right, bottom = np.array(box_xyxy(drawn)) * (576, 384, 576, 384) / 192
        assert annotation["bbox"] == pytest.approx((left, top, right - left, bottom - top))
        assert coco.cats[annotation["category_id"]]["name"] == drawn.shape


def test_scenes_of_each_condition() -> None:
    plain, blurred, small, least = (image for image, _ in difficult_scenes(4))
    assert [image.width for image in (plain, blurred, small, least)] == [384, 384, 40, 22]
    steepest = []
    for image in (plain, blurred):
        steepest.append(np.abs(np.diff(np.asarray(image, dtype=int), axis=1)).max())
    assert steepest[1] < 0.6 * steepest[0]


def test_shapes_of_large_images_lie_apart_inside() -> None:
    counts = []
    for image, boxes in large_images(4):
        counts.append(len(boxes))
        for _, (left, top, right, bottom) in boxes:
            assert 0 <= left < right <= image.width
            assert 0 <= top < bottom <= image.height
        for (_, box), (_, other) in combinations(boxes, 2):
            is_beside = box[0] > other[2] or box[2] < other[0]
            assert is_beside or box[1] > other[3] or box[3] < other[1]
    assert counts == [12, 12, 12, 0]


def test_images_of_all_sizes() -> None:
    shares = []
    for index, (image, boxes) in enumerate(images_of_all_sizes(40)):
        assert len(boxes) == 1 + index % 4
        shares += [(right - left) / image.width for _, (left, _, right, _) in boxes]
    assert min(shares) == pytest.approx(0.03, abs=0.01)
    assert max(shares) == pytest.approx(0.33, abs=0.03)
