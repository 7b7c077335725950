from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from export.scenes import questions
from export.scenes.geometry import box_xyxy
from export.scenes.truth import DetectionsTruth
from laboratory.evaluation import CONDITIONS, evaluation_scene
from laboratory.evaluation.coco_scenes import labelled, rendered, write_coco
from laboratory.tile_scenes import scenes


def test_every_scene_has_its_true_boxes_under_every_condition(tmp_path: Path) -> None:
    conditions = [CONDITIONS["stretched"], CONDITIONS["jpeg"]]
    indices = [3, 4]
    write_coco(tmp_path / "scenes", rendered(conditions, indices))
    coco = COCO(tmp_path / "scenes" / "annotations.json")
    assert len(coco.imgs) == 4
    for image, (index, size_wh) in zip(
        coco.imgs.values(),
        [(index, size) for index in indices for size in ((576, 384), (384, 384))],
        strict=True,
    ):
        with Image.open(tmp_path / "scenes" / "images" / image["file_name"]) as shown:
            assert shown.size == size_wh
        (question,) = (
            each for each in questions(evaluation_scene(index)) if each.name == "object_detection"
        )
        truth = question.scaled(size_wh).truth
        assert isinstance(truth, DetectionsTruth)
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert sorted(coco.cats[row["category_id"]]["name"] for row in rows) == sorted(
            box.label for box in truth.boxes
        )
        boxes_xyxy = [box.box_xyxy for box in truth.boxes]
        expected = sorted((x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes_xyxy)
        assert sorted(tuple(row["bbox"]) for row in rows) == [
            pytest.approx(box) for box in expected
        ]


def test_a_large_image_has_the_boxes_of_its_shapes(tmp_path: Path) -> None:
    (scene,) = scenes("40 px", 1, size_wh=(1000, 600))
    write_coco(tmp_path / "large", labelled([scene]))
    coco = COCO(tmp_path / "large" / "annotations.json")
    (image,) = coco.imgs.values()
    assert (tmp_path / "large" / "images" / image["file_name"]).read_bytes() == scene.data
    for row, drawn in zip(coco.anns.values(), scene.objects, strict=True):
        left, top, width, height = row["bbox"]
        assert (left, top, left + width, top + height) == pytest.approx(box_xyxy(drawn))
