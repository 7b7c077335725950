"""Answers as values of COCO, pandas, supervision and, installed apart, FiftyOne."""

import json
import os
import subprocess
import sys
import tomllib
from typing import Any

import numpy as np
import pytest
import supervision
from pycocotools.coco import COCO

from diptych_client import ImageSize
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
    document = answer(DETECTIONS).to_coco()
    assert document["categories"] == [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}]
    assert [row["category_id"] for row in document["annotations"]] == [1, 2, 1]
    assert document["annotations"][0]["bbox"] == [1, 2, 10, 10]
    ring, pair = answer(INSTANCES).to_coco()["annotations"]
    assert "counts" in ring["segmentation"]  # polygons have no holes
    assert list(map(len, pair["segmentation"])) == [8, 8]
    (caption,) = answer(TEXT).to_coco()["annotations"]
    assert caption == {"id": 1, "image_id": 1, "caption": TEXT.text}


def test_table_has_a_row_for_each_object() -> None:
    for result, labels in ((DETECTIONS, ["star", "circle", "star"]), (TEXT, [TEXT.text])):
        table = answer(result).to_pandas()
        assert table["label"].tolist() == labels
        assert set(table["model"]) == {"some-model"}
        assert result is TEXT or (table["x2"] > table["x1"]).all()


def test_detections_have_boxes_scores_and_classes() -> None:
    detections = answer(DETECTIONS).to_supervision()
    assert detections.xyxy.tolist() == [[1, 2, 11, 12], [20, 4, 30, 14], [30, 4, 36, 10]]
    assert np.asarray(detections.confidence).tolist() == [np.float32(0.9), 0.5, 0.25]
    assert np.asarray(detections.class_id).tolist() == [0, 1, 0]
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


def test_empty_detections_are_merged() -> None:
    for result in (DETECTIONS, INSTANCES, TEXT_REGIONS):
        empty: Any = type(result)(())
        both = [answer(empty).to_supervision(), answer(result).to_supervision()]
        assert len(supervision.Detections.merge(both)) == len(both[1])


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
