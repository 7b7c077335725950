"""From labelled images to a served adapter: `python -m export.tune`, the watched folder, and the
running service.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from export.scenes import render_scene, sample_scene
from export.tune import main
from laboratory.tuning import X, write_new_shape
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ModelStore
from tests.support.running_service import forked_service
from tests.support.scene_images import encoded

CAPTION = "a drawing of shapes"  # no embedded model writes it
NUM_IMAGES = 16
FIRST_SEED = 600_000_000  # the embedded models have not been trained on it

pytestmark = pytest.mark.long


def test_tuned_adapter_writes_its_captions(
    exported: ModelStore, model_id: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = []
    for index in range(NUM_IMAGES):
        render_scene(sample_scene(FIRST_SEED + index)).save(data / f"{index}.png")
        rows.append(json.dumps({"image": f"{index}.png", "caption": CAPTION}))
    (data / "captions.jsonl").write_text("\n".join(rows))
    adapters = tmp_path / "adapters"
    words = ["--base", model_id, "--task", "captioning", "--output", str(adapters / "drawings")]
    words += ["--epochs", "15", "--batch-size", "4", "--learning-rate", "3e-3"]
    assert main([str(data), *words]) == 0
    settings = {"DIPTYCH_MODELS": model_id, "DIPTYCH_ADAPTERS": str(adapters)}
    with forked_service(exported.home, tmp_path / "log", **settings) as service:
        for seed in range(FIRST_SEED - 5, FIRST_SEED):
            image = encoded(render_scene(sample_scene(seed)))
            base = service.predict(image, task="captioning", model=model_id).json()
            tuned = service.predict(image, task="captioning", model="drawings").json()
            assert (base["vision_cache"], tuned["vision_cache"]) == ("miss", "hit")
            assert base["result"]["text"] != CAPTION
            assert tuned["result"]["text"] == CAPTION


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
    report = (tmp_path / "report" / "report.md").read_text()
    by_class = report.partition("## AP by class")[2].partition("\n## ")[0]
    (row,) = re.findall(rf"^\| {X} \|.*", by_class, re.MULTILINE)
    *_, base, tuned = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
    assert (base, tuned >= 80) == (0, True)
