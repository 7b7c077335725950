"""Answers as values of COCO, supervision and, installed apart, FiftyOne."""

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO

from diptych_client import (
    Answer,
    DetectionsResult,
    ImageSize,
    InstancesResult,
    results,
)
from diptych_client.json_values import from_json, to_json
from diptych_client.requests import TaskId
from tasks.table import TASKS
from tests.support.client_answers import DETECTIONS, INSTANCES, MASKS, TEXT, TEXT_REGIONS, answer
from tests.support.export_cli import ROOT


def test_coco_has_boxes_masks_text_regions_and_captions() -> None:
    for result in (DETECTIONS, INSTANCES, TEXT_REGIONS):
        coco: Any = COCO()
        coco.dataset = answer(result).to_coco("a.png", image_id=7)
        coco.createIndex()
        assert coco.imgs[7]["file_name"] == "a.png"
        for annotation in coco.anns.values():
            assert annotation["category_id"] in coco.cats
            assert annotation.get("text", "HI") == "HI"
            if annotation["segmentation"]:
                mask = coco.annToMask(annotation)
                assert mask.sum() == pytest.approx(annotation["area"], rel=0.3)
        if result is INSTANCES:
            for annotation, instance in zip(coco.anns.values(), INSTANCES.instances, strict=True):
                mask = instance.to_mask(ImageSize(40, 20))
                np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    nothing = InstancesResult((replace(INSTANCES.instances[0], polygons_xy=()),))
    masks = (answer(MASKS, ImageSize(width=4, height=2)), 8), (answer(nothing), 0)
    for one, area in masks:
        (row,) = one.to_coco()["annotations"]
        assert (row["area"], sum(row["segmentation"]["counts"][1::2])) == (area, area)
    document = answer(DETECTIONS).to_coco(classes=["star", "circle"])
    assert document["categories"] == [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}]
    assert [row["category_id"] for row in document["annotations"]] == [1, 2, 1]
    first = document["annotations"][0]
    assert (first["bbox"], first["area"], first["score"]) == ([1, 2, 10, 10], 100, 0.9)
    ring, pair = answer(INSTANCES).to_coco()["annotations"]
    assert "counts" in ring["segmentation"]  # polygons have no holes
    assert list(map(len, pair["segmentation"])) == [8, 8]
    (caption,) = answer(TEXT).to_coco()["annotations"]
    assert caption == {"id": 1, "image_id": 1, "caption": TEXT.text}


def test_detections_have_boxes_scores_and_classes() -> None:
    detections = answer(DETECTIONS).to_supervision(["circle", "star"])
    assert detections.xyxy.tolist() == [[1, 2, 11, 12], [20, 4, 30, 14], [30, 4, 36, 10]]
    assert np.asarray(detections.confidence).tolist() == [np.float32(0.9), 0.5, 0.25]
    assert np.asarray(detections.class_id).tolist() == [1, 0, 1]
    assert list(detections.data["class_name"]) == ["star", "circle", "star"]
    assert detections.mask is None


def test_detections_have_masks_quads_or_a_text() -> None:
    masks = np.asarray(answer(INSTANCES).to_supervision().mask)
    assert (masks.shape, masks.dtype) == ((2, 20, 40), np.dtype(bool))
    assert masks.sum(axis=(1, 2)).tolist() == [84, 200]
    run_lengths = answer(MASKS, ImageSize(width=4, height=2)).to_supervision().mask
    assert np.asarray(run_lengths).sum() == 8
    detections = answer(TEXT_REGIONS).to_supervision()
    assert detections.xyxy.tolist() == [[4, 5, 15, 10]]
    assert np.asarray(detections.data["xyxyxyxy"]).tolist() == [[[5, 5], [15, 6], [14, 10], [4, 9]]]
    text = answer(TEXT).to_supervision()
    assert (len(text), text.metadata) == (0, {"text": TEXT.text})
    for result in (DETECTIONS, INSTANCES, TEXT_REGIONS):
        empty: Any = type(result)(())
        both = [answer(empty).to_supervision(), answer(result).to_supervision()]
        assert len(supervision.Detections.merge(both)) == len(both[1])


def test_class_ids_are_those_of_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_class_ids", {})
    star = DETECTIONS.detections[0]
    circle = replace(star, label="circle")
    for labels, ids in (((circle, star), [0, 1]), ((star,), [1]), ((star, circle), [1, 0])):
        one = answer(DetectionsResult(labels))
        assert np.asarray(one.to_supervision().class_id).tolist() == ids
        document = one.to_coco()
        assert [row["category_id"] - 1 for row in document["annotations"]] == ids
        assert {row["id"] - 1: row["name"] for row in document["categories"]} == dict(
            zip(ids, [item.label for item in labels], strict=True)
        )
    assert np.asarray(answer(TEXT_REGIONS).to_supervision().class_id).tolist() == [2]
    monkeypatch.setattr(results, "MAX_CLASSES", 3)
    assert len(answer(DETECTIONS).to_supervision()) == 3
    with pytest.raises(ValueError, match="more than 3 labels: give the classes"):
        answer(DetectionsResult((replace(star, label="square"),))).to_supervision()
    with pytest.raises(ValueError, match="classes are circle, without star"):
        one.to_coco(classes=["circle"])


def test_names_and_dictionaries_are_those_of_rest() -> None:
    literals = [get_args(part) for part in get_args(TaskId)]
    assert list(chain(*literals)) == list(TASKS)
    one = answer(DETECTIONS)
    assert from_json(Answer, one.to_dict()) == one
    assert json.dumps(one.to_dict()) == json.dumps(to_json(one))


CONVERT = """
import json
from tests.support.client_answers import DETECTIONS, INSTANCES, TEXT, TEXT_REGIONS, answer
import fiftyone as fo
labels = {name: answer(result).to_fiftyone() for name, result in
          {"boxes": DETECTIONS, "masks": INSTANCES, "texts": TEXT_REGIONS}.items()}
sample = fo.Sample(filepath="/tmp/a.png", **labels)
rows = [[box.label, box.confidence, box.bounding_box] for box in sample.boxes.detections]
masks = [[mask.bounding_box, mask.mask.shape, int(mask.mask.sum())]
         for mask in sample.masks.detections]
lines = [[line.label, line.closed, line.points] for line in sample.texts.polylines]
print("converted:" + json.dumps([rows, masks, lines, answer(TEXT).to_fiftyone().label]))
"""


@pytest.mark.long
def test_fiftyone_has_relative_boxes_masks_and_lines(tmp_path: Any) -> None:
    folder = ROOT / "build" / "fiftyone"
    python = str(folder / "bin/python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [*project["dependency-groups"]["fiftyone"], "-e", "./client"]
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], cwd=ROOT, check=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(ROOT)]),
        "HOME": str(tmp_path),
        "FIFTYONE_DO_NOT_TRACK": "true",
    }
    run = subprocess.run([python, "-c", CONVERT], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    boxes, masks, (line,), text = json.loads(run.stdout.rpartition("converted:")[2])
    assert [row[:2] for row in boxes] == [["star", 0.9], ["circle", 0.5], ["star", 0.25]]
    assert boxes[0][2] == pytest.approx([1 / 40, 2 / 20, 10 / 40, 10 / 20])
    assert [row[1:] for row in masks] == [[[10, 10], 84], [[13, 28], 200]]
    assert masks[0][0] == pytest.approx([2 / 40, 2 / 20, 10 / 40, 10 / 20])
    assert (line[:2], text) == (["HI", True], TEXT.text)
    corners = np.array(line[2]) * (40, 20)
    assert corners == pytest.approx(np.array([[(5, 5), (15, 6), (14, 10), (4, 9)]]))
