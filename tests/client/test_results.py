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

from diptych_client import DetectionsResult, ImageSize, InstancesResult, TextRegionsResult
from diptych_client.results import Result
from tests.support.client_answers import DETECTIONS, INSTANCES, MASKS, TEXT, TEXT_REGIONS, answer
from tests.support.export_cli import ROOT


@pytest.mark.parametrize("result", [DETECTIONS, INSTANCES, TEXT_REGIONS])
def test_coco_has_boxes_masks_and_text_regions(result: Result) -> None:
    coco: Any = COCO()
    coco.dataset = answer(result).to_coco("a.png", image_id=7)
    coco.createIndex()
    assert coco.imgs[7]["file_name"] == "a.png"
    for annotation in coco.anns.values():
        assert annotation["category_id"] in coco.cats
        assert annotation.get("text", "HI") == "HI"
        if annotation["segmentation"]:
            assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.3)


def test_coco_has_categories_and_captions() -> None:
    document = answer(DETECTIONS).to_coco()
    assert document["categories"] == [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}]
    assert [row["category_id"] for row in document["annotations"]] == [1, 2, 1]
    assert document["annotations"][0]["bbox"] == [1, 2, 10, 10]
    (caption,) = answer(TEXT).to_coco()["annotations"]
    assert caption == {"id": 1, "image_id": 1, "caption": TEXT.text}


@pytest.mark.parametrize(
    ("result", "labels"), [(DETECTIONS, ["star", "circle", "star"]), (TEXT, [TEXT.text])]
)
def test_table_has_a_row_for_each_object(result: Result, labels: list[str]) -> None:
    table = answer(result).to_pandas()
    assert table["label"].tolist() == labels
    assert set(table["model"]) == {"some-model"}
    assert result is TEXT or (table["x2"] > table["x1"]).all()


def test_detections_have_boxes_scores_and_classes() -> None:
    detections = answer(DETECTIONS).to_supervision()
    assert detections.xyxy.tolist() == [[1, 2, 11, 12], [20, 4, 30, 14], [30, 4, 36, 10]]
    assert detections.confidence is not None
    assert detections.confidence.tolist() == [np.float32(0.9), 0.5, 0.25]
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [0, 1, 0]
    assert list(detections.data["class_name"]) == ["star", "circle", "star"]
    assert detections.mask is None


def test_detections_have_masks_with_holes() -> None:
    masks = answer(INSTANCES).to_supervision().mask
    assert masks is not None
    assert (masks.shape, masks.dtype) == ((2, 20, 40), np.dtype(bool))
    assert masks.sum(axis=(1, 2)).tolist() == [84, 200]
    run_lengths = answer(MASKS, ImageSize(width=4, height=2)).to_supervision().mask
    assert run_lengths is not None
    assert run_lengths.sum() == 8


def test_detections_have_quads_or_a_text() -> None:
    detections = answer(TEXT_REGIONS).to_supervision()
    assert detections.xyxy.tolist() == [[4, 5, 15, 10]]
    assert np.asarray(detections.data["xyxyxyxy"]).tolist() == [[[5, 5], [15, 6], [14, 10], [4, 9]]]
    text = answer(TEXT).to_supervision()
    assert (len(text), text.metadata) == (0, {"text": TEXT.text})


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        (DetectionsResult, DETECTIONS),
        (InstancesResult, INSTANCES),
        (TextRegionsResult, TEXT_REGIONS),
    ],
)
def test_empty_detections_are_merged(kind: Any, result: Result) -> None:
    both = [answer(kind(())).to_supervision(), answer(result).to_supervision()]
    assert len(supervision.Detections.merge(both)) == len(both[1])


CONVERT = """
import json
from tests.support.client_answers import DETECTIONS, INSTANCES, TEXT, TEXT_REGIONS, answer
import fiftyone as fo
labels = {name: answer(result).to_fiftyone() for name, result in
          {"boxes": DETECTIONS, "masks": INSTANCES, "texts": TEXT_REGIONS}.items()}
sample = fo.Sample(filepath="/tmp/a.png", **labels)
rows = [{"label": box.label, "box": box.bounding_box, "confidence": box.confidence}
        for box in sample.boxes.detections]
masks = [{"box": mask.bounding_box, "shape": mask.mask.shape, "sum": int(mask.mask.sum())}
         for mask in sample.masks.detections]
lines = [{"label": line.label, "points": line.points, "closed": line.closed}
         for line in sample.texts.polylines]
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
    assert [row["label"] for row in boxes] == ["star", "circle", "star"]
    assert boxes[0]["box"] == pytest.approx([1 / 40, 2 / 20, 10 / 40, 10 / 20])
    assert [row["confidence"] for row in boxes] == [0.9, 0.5, 0.25]
    assert [(row["shape"], row["sum"]) for row in masks] == [([10, 10], 84), ([13, 28], 200)]
    assert masks[0]["box"] == pytest.approx([2 / 40, 2 / 20, 10 / 40, 10 / 20])
    assert (line["label"], line["closed"], text) == ("HI", True, TEXT.text)
    corners = np.array(line["points"]) * (40, 20)
    assert corners == pytest.approx(np.array([[(5, 5), (15, 6), (14, 10), (4, 9)]]))
