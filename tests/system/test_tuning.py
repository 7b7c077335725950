"""From labelled images to a served adapter: `python -m export.tune`, the watched folder, and the
running service.
"""

import json
import subprocess
from pathlib import Path

import pytest

from export.tune import main
from laboratory.tuning import X, write_new_shape
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ModelStore
from tests.support.running_service import forked_service

pytestmark = pytest.mark.long


def test_new_shape_is_learnt(exported: ModelStore, tmp_path: Path) -> None:
    """docs/fine-tuning.md: AP50 of a shape that florence-2-mini has never seen."""
    scenes = tmp_path / "scenes"
    adapters = tmp_path / "adapters"
    write_new_shape(scenes, 200)
    options = ["--base", "florence-2-mini", "--task", "object_detection"]
    options += ["--epochs", "12", "--batch-size", "16", "--learning-rate", "3e-3"]
    assert main([str(scenes / "train"), *options, "--output", str(adapters / "x-shape")]) == 0
    settings = {"DIPTYCH_MODELS": "florence-2-mini", "DIPTYCH_ADAPTERS": str(adapters)}
    with forked_service(exported.home, tmp_path / "log", **settings) as service:
        words = ["evaluate", str(scenes / "test"), "--task", "object_detection"]
        words += ["--models", "florence-2-mini,x-shape", "--out", str(tmp_path / "report")]
        subprocess.run([DIPTYCH, "--url", service.url, *words], check=True)
    details = json.loads((tmp_path / "report" / "report.json").read_text())["details"]
    models = ("florence-2-mini", "x-shape")
    base, tuned = (details[model]["by_class"][X]["AP50"] for model in models)
    assert (round(base, 1), tuned >= 80) == (0, True)
