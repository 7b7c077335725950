"""COCO documents, as pycocotools reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from diptych_client import DetectionsResult, ImageSize
from diptych_client.evaluation.formats.coco import coco_document
from diptych_client.evaluation.formats.writing import class_indices
from diptych_client.evaluation.job import Record
from diptych_client.results import InstancesResult
from tests.support.client_answers import DETECTIONS, INSTANCES, MASKS, SIZE, record


def loaded(tmp_path: Path, *records: Record) -> Any:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_document(records, class_indices(records, ()))))
    return COCO(path)


def test_boxes_are_those_of_the_answers(tmp_path: Path) -> None:
    coco = loaded(tmp_path, record(DETECTIONS, "a.png"), record(DetectionsResult(()), "b/c.png"))
    assert {
        image["file_name"]: (image["width"], image["height"]) for image in coco.imgs.values()
    } == {
        "a.png": (40, 20),
        "b/c.png": (40, 20),
    }
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    names = {category["id"]: category["name"] for category in coco.cats.values()}
    assert [names[each["category_id"]] for each in annotations] == ["star", "circle", "star"]
    assert [each["bbox"] for each in annotations] == [
        [1, 2, 10, 10],
        [20, 4, 10, 10],
        [30, 4, 6, 6],
    ]
    assert [each["area"] for each in annotations] == [100, 100, 36]
    assert [each["score"] for each in annotations] == [0.9, 0.5, 0.25]
    assert coco.getAnnIds(imgIds=[2]) == []


def test_masks_are_those_of_the_answers_with_their_holes(tmp_path: Path) -> None:
    coco = loaded(tmp_path, record(INSTANCES))
    ring, pair = coco.loadAnns(coco.getAnnIds())
    assert isinstance(pair["segmentation"], list)
    assert [ring["area"], pair["area"]] == [84, 200]
    for annotation, instance in zip((ring, pair), INSTANCES.instances, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), instance.to_mask(SIZE))


def test_a_mask_of_run_lengths_is_kept(tmp_path: Path) -> None:
    size = ImageSize(width=4, height=2)
    coco = loaded(tmp_path, record(MASKS, image=size))
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert coco.annToMask(annotation).sum() == annotation["area"] == 8


def test_ids_count_from_one(tmp_path: Path) -> None:
    coco = loaded(tmp_path, record(DETECTIONS, "a.png"), record(DETECTIONS, "b.png"))
    assert [sorted(table) for table in (coco.imgs, coco.cats, coco.anns)] == [
        [1, 2],
        [1, 2],
        [1, 2, 3, 4, 5, 6],
    ]


def test_instances_without_an_outline_have_an_empty_mask(tmp_path: Path) -> None:
    (first, _) = INSTANCES.instances
    empty = InstancesResult((type(first)(first.box_xyxy, "nothing", 0.5, ()),))
    coco = loaded(tmp_path, record(empty))
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert coco.annToMask(annotation).sum() == annotation["area"] == 0
