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

CAPTION = "a drawing of shapes"
NUM_IMAGES = 16
FIRST_SEED = 600_000_000  # the embedded models have not been trained on it


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Scenes with a caption that no embedded model writes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        render_scene(sample_scene(FIRST_SEED + index)).save(folder / f"{index}.png")
    rows = (
        json.dumps({"image": f"{index}.png", "caption": CAPTION}) for index in range(NUM_IMAGES)
    )
    (folder / "captions.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.long
def test_an_adapter_tuned_on_captions_writes_them_about_other_images(
    data: Path, exported: ModelStore, model_id: str, tmp_path: Path
) -> None:
    adapters = tmp_path / "adapters"
    options = ("--base", model_id, "--task", "captioning", "--output", str(adapters / "drawings"))
    assert (
        main(
            [str(data), *options, "--epochs", "15", "--batch-size", "4", "--learning-rate", "3e-3"]
        )
        == 0
    )
    settings = {"DIPTYCH_MODELS": model_id, "DIPTYCH_ADAPTERS": str(adapters)}
    with (
        forked_service(exported.home, tmp_path / "log", **settings) as running,
        running.client() as http,
    ):
        for seed in range(FIRST_SEED - 5, FIRST_SEED):
            image = encoded(render_scene(sample_scene(seed)))
            base, tuned = (
                http.post(
                    "/v1/predict",
                    data={"task": "captioning", "model": model},
                    files={"image": image},
                ).json()
                for model in (model_id, "drawings")
            )
            assert (base["vision_cache"], tuned["vision_cache"]) == ("miss", "hit")
            assert base["result"]["text"] != CAPTION
            assert tuned["result"]["text"] == CAPTION


@pytest.mark.long
def test_a_new_shape_is_learnt(exported: ModelStore, tmp_path: Path) -> None:
    """docs/fine-tuning.md: AP50 of a shape that florence-2-mini has never seen."""
    write_new_shape(tmp_path / "scenes", 200)
    options = ["--base", "florence-2-mini", "--task", "object_detection"]
    options += ["--epochs", "12", "--batch-size", "16", "--learning-rate", "3e-3"]
    output = ["--output", str(tmp_path / "adapters" / "x-shape")]
    assert main([str(tmp_path / "scenes" / "train"), *options, *output]) == 0
    settings = {"DIPTYCH_MODELS": "florence-2-mini", "DIPTYCH_ADAPTERS": str(tmp_path / "adapters")}
    with forked_service(exported.home, tmp_path / "log", **settings) as running:
        words = ["evaluate", str(tmp_path / "scenes" / "test"), "--task", "object_detection"]
        words += ["--models", "florence-2-mini,x-shape", "--out", str(tmp_path / "report")]
        subprocess.run([DIPTYCH, "--url", running.url, *words], check=True)
    report = (tmp_path / "report" / "report.md").read_text()
    by_class = report.partition("## AP by class")[2].partition("\n## ")[0]
    (row,) = re.findall(rf"^\| {X} \|.*", by_class, re.MULTILINE)
    *_, base, tuned = (float(cell) for cell in row.strip("| ").split(" | ")[1:])
    assert (base, tuned >= 80) == (0, True)
