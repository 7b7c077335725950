import json
from pathlib import Path

import pytest
from PIL import Image

from laboratory.bench.material.models import BENCH_MODELS, BenchModel
from laboratory.bench.material.questions import model_material
from laboratory.bench.material.records import read_material
from service.inference.request_fields import PredictFields, parse_fields
from tests.support.catalog import CATALOG


@pytest.mark.parametrize("model", BENCH_MODELS, ids=lambda model: model.id)
def test_the_written_material_is_read(model: BenchModel, tmp_path: Path) -> None:
    listed = model_material(model, CATALOG[model.entry_id], tmp_path, num_scenes=2)
    (tmp_path / "material.json").write_text(json.dumps({"models": [listed]}))
    (read,) = read_material(tmp_path)
    assert (read.id, read.scale, read.is_endless) == (model.id, model.scale, model.is_endless)
    assert len({scene.image.read_bytes() for scene in read.scenes}) == 2
    assert [len(scene.questions) for scene in read.scenes] == [
        len(scene["questions"]) for scene in listed["scenes"]
    ]


@pytest.mark.parametrize("model", BENCH_MODELS, ids=lambda model: model.id)
def test_our_api_accepts_every_question(model: BenchModel, tmp_path: Path) -> None:
    entry = CATALOG[model.entry_id]
    # questions with several prompts are left out
    scenes = model_material(model, entry, tmp_path, num_scenes=12)["scenes"]
    asked = {
        parse_fields(PredictFields, question["fields"])[1].task.id
        for scene in scenes
        for question in scene["questions"]
    }
    assert asked == set(entry.task_ids)


def test_images_have_the_size_of_their_scale(tmp_path: Path) -> None:
    for model, side_px in ((BENCH_MODELS[0], 384), (BENCH_MODELS[-1], 768)):
        (scene,) = model_material(model, CATALOG[model.entry_id], tmp_path, num_scenes=1)["scenes"]
        with Image.open(tmp_path / scene["image"]) as image:
            assert image.size == (side_px, side_px)
