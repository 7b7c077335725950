"""A shape that the embedded models have never seen, learnt from labelled scenes and served beside its base."""

import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from export.scenes import Tally
from export.scenes.scoring import match_boxes
from tests.support.export_cli import ROOT, ModelStore
from tests.support.hexagon_scenes import (
    FIRST_TEST_SEED,
    FIRST_TRAINING_SEED,
    HEXAGON,
    NAMES,
    HexagonScene,
    hexagon_scene,
    write_hexagon_coco,
)
from tests.support.running_service import running_service
from tests.support.scene_images import encoded

NUM_TEST_SCENES = 200
MAX_PROCESSOR_S = 20 * 60.0
MIN_F1, MAX_LOSS = 0.9, 0.02
MIN_IOU = 0.5


@dataclass(frozen=True)
class Recipe:
    """What is tuned on, and for how long."""

    base: str
    task: str
    num_scenes: int
    options: tuple[str, ...]
    fields: dict[str, str | list[str]]  # of a request

    @property
    def adapter(self) -> str:
        return f"{self.base}-hexagons"


RECIPES = (
    Recipe("florence-2-mini", "object_detection", 500, ("--epochs", "14"), {}),
    Recipe("paligemma-mini", "open_vocabulary_detection", 250, ("--epochs", "8"), {"labels": list(NAMES)}),
)


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.base)
def test_a_new_shape_is_learnt_and_the_others_are_not_forgotten(
    recipe: Recipe, exported: ModelStore, tmp_path: Path
) -> None:
    data = write_hexagon_coco(tmp_path / "data", FIRST_TRAINING_SEED, recipe.num_scenes)
    adapters = tmp_path / "adapters"
    processor_s = tune(recipe, data, adapters / recipe.adapter)
    scenes = [hexagon_scene(FIRST_TEST_SEED + index) for index in range(NUM_TEST_SCENES)]
    old = [scene for scene in scenes if not scene.has_hexagon]
    with served(recipe, exported, adapters, tmp_path) as http:
        learnt, base, tuned = (
            f1_by_shape(http, recipe, model, some)
            for model, some in ((recipe.adapter, scenes), (recipe.base, old), (recipe.adapter, old))
        )
    print(
        f"\n{recipe.base}: {processor_s:.0f} processor seconds; with hexagons {learnt}; without, base {base}, {tuned}"
    )
    assert learnt[HEXAGON] >= MIN_F1
    assert {name for name in base if tuned[name] < base[name] - MAX_LOSS} == set()
    assert processor_s <= MAX_PROCESSOR_S


def tune(recipe: Recipe, data: Path, output: Path) -> float:
    """Run the command; return its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["--base", recipe.base, "--task", recipe.task, "--output", str(output), *recipe.options]
    run = subprocess.run(
        [sys.executable, "-m", "export.tune", str(data), *command], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def served(recipe: Recipe, exported: ModelStore, adapters: Path, folder: Path) -> Iterator[httpx.Client]:
    """Serve a base and the watched folder of its adapter."""
    settings = {"DIPTYCH_MODELS": recipe.base, "DIPTYCH_ADAPTERS": str(adapters)}
    with running_service(exported.home, folder / "service.log", **settings) as running, running.client() as http:
        listed = [model["id"] for model in http.get("/v1/models").json()["data"]]
        assert listed == [recipe.base, recipe.adapter]
        yield http


def f1_by_shape(http: httpx.Client, recipe: Recipe, model: str, scenes: Iterable[HexagonScene]) -> dict[str, float]:
    tallies = defaultdict[str, Tally](Tally)
    for scene in scenes:
        fields = {"task": recipe.task, "model": model} | recipe.fields
        answer = http.post("/v1/predict", data=fields, files={"image": encoded(scene.image)})
        detections = answer.raise_for_status().json()["result"]["detections"]
        for name in NAMES:
            found = [each for each in detections if each["label"] == name]
            true = [each for each in scene.objects if each.label == name]
            tallies[name] += match_boxes(found, true, MIN_IOU)
    return {name: round(tally.f1, 3) for name, tally in tallies.items()}
