"""The real X-AnyLabeling, without a screen: it lists both models, and their answers become its
shapes.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_cli import EMBEDDED, ROOT
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.tool_environments import tool_python

pytestmark = pytest.mark.long

FLORENCE, PALIGEMMA = EMBEDDED
SQUARE = (51.4, 109.6, 135.8, 174.8)  # the scene has it
STEPS: Sequence[Mapping[str, Any]] = (
    {"model": FLORENCE, "task": "object_detection"},
    {"model": PALIGEMMA, "task": "open_vocabulary_detection", "text": "purple square"},
    {"model": PALIGEMMA, "task": "instance_segmentation", "text": "purple square"},
    {"model": FLORENCE, "task": "captioning"},
    {"model": FLORENCE, "task": "region_description", "rectangle": list(SQUARE)},
)


def session(service: RunningService, folder: Path, steps: Sequence[Mapping[str, Any]]) -> Any:
    """Return the models, and the shapes and description after each step."""
    image = folder / "scene.png"
    image.write_bytes(scene_png())
    given = {
        "url": f"{service.url}/integrations/x-anylabeling",
        "key": "",
        "image": str(image),
        "folder": str(folder),
        "steps": steps,
        "picture": str(folder / "picture.png"),  # after the first step, for docs/x-anylabeling.md
    }
    script = ROOT / "tests/support/x_anylabeling_session.py"
    command = [str(tool_python("x-anylabeling")), str(script), json.dumps(given)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def is_near(points: list[list[float]], box: tuple[float, float, float, float]) -> bool:
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys), max(xs), max(ys)) == pytest.approx(box, abs=8)


def test_answers_become_shapes_and_a_description(service: RunningService, tmp_path: Path) -> None:
    models, results = session(service, tmp_path, STEPS)
    assert models == list(EMBEDDED)
    detected, prompted, segmented, captioned, described = results
    assert sorted(shape["label"] for shape in detected["shapes"]) == [
        "circle",
        "square",
        "star",
        "triangle",
    ]
    (box,) = prompted["shapes"]
    assert (box["label"], box["type"]) == ("purple square", "rectangle")
    assert is_near(box["points"], SQUARE)
    (outline,) = segmented["shapes"]
    assert outline["type"] == "polygon"
    assert is_near(outline["points"], SQUARE)
    assert captioned["shapes"] == segmented["shapes"]  # a text deletes no shapes
    assert "square" in captioned["description"]
    assert [shape["label"] for shape in described["shapes"]] == ["square"]
