"""Results as FiftyOne's labels, made by the real package in a separate environment."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_answers import TEXT
from tests.support.export_cli import ROOT
from tests.support.tool_environments import tool_python

CONVERT = """
import json
from tests.support.client_answers import DETECTIONS, INSTANCES, TEXT, TEXT_REGIONS, answer
import fiftyone as fo
found = {name: answer(result).to_fiftyone() for name, result in
         {"boxes": DETECTIONS, "masks": INSTANCES, "texts": TEXT_REGIONS}.items()}
sample = fo.Sample(filepath="/tmp/a.png", **found)
rows = [{"label": each.label, "box": each.bounding_box, "confidence": each.confidence}
        for each in sample.boxes.detections]
masks = [{"box": each.bounding_box, "shape": each.mask.shape, "sum": int(each.mask.sum())}
         for each in sample.masks.detections]
polylines = sample.texts.polylines
lines = [{"label": each.label, "points": each.points, "closed": each.closed} for each in polylines]
print("converted:" + json.dumps([rows, masks, lines, answer(TEXT).to_fiftyone().label]))
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Boxes, masks and lines that a sample of FiftyOne has."""
    own = {"HOME": str(tmp_path_factory.mktemp("home")), "FIFTYONE_DO_NOT_TRACK": "true"}
    environment = (
        os.environ | own | {"PYTHONPATH": os.pathsep.join([str(ROOT / "client"), str(ROOT)])}
    )
    run = subprocess.run(
        [tool_python("fiftyone", "-e", "./client"), "-c", CONVERT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.rpartition("converted:")[2])


@pytest.mark.long
def test_boxes_are_relative_to_the_image(converted: Any) -> None:
    boxes, *_ = converted
    assert [each["label"] for each in boxes] == ["star", "circle", "star"]
    assert boxes[0]["box"] == pytest.approx([1 / 40, 2 / 20, 10 / 40, 10 / 20])
    assert [each["confidence"] for each in boxes] == [0.9, 0.5, 0.25]


@pytest.mark.long
def test_masks_cover_their_boxes_and_keep_holes(converted: Any) -> None:
    _, masks, *_ = converted
    assert [(each["shape"], each["sum"]) for each in masks] == [([10, 10], 84), ([13, 28], 200)]
    assert masks[0]["box"] == pytest.approx([2 / 40, 2 / 20, 10 / 40, 10 / 20])


@pytest.mark.long
def test_text_regions_are_closed_lines(converted: Any) -> None:
    _, _, (line,), _ = converted
    assert (line["label"], line["closed"]) == ("HI", True)
    (points,) = line["points"]
    assert points == [
        pytest.approx(point)
        for point in ([5 / 40, 5 / 20], [15 / 40, 6 / 20], [14 / 40, 10 / 20], [4 / 40, 9 / 20])
    ]


@pytest.mark.long
def test_a_text_is_a_classification(converted: Any) -> None:
    *_, text = converted
    assert text == TEXT.text


def test_without_fiftyone_the_error_names_the_package_to_install() -> None:
    code = (
        "import sys; sys.modules['fiftyone'] = None\n"  # an import of it fails
        "from tests.support.client_answers import DETECTIONS, answer\n"
        "answer(DETECTIONS).to_fiftyone()"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(ROOT) / "client"), str(ROOT)])}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | paths,
        capture_output=True,
        text=True,
    )
    assert "ImportError: to_fiftyone() needs fiftyone: pip install fiftyone" in run.stderr
