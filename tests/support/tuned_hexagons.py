"""Measures adapters that were tuned on scenes with hexagons, served beside their base.

python -m tests.support.tuned_hexagons scenes FOLDER      write 500 training scenes with COCO labels
python -m tests.support.tuned_hexagons named FOLDER       write 200 scenes of known shapes, labelled
                                                          by colour and shape
python -m tests.support.tuned_hexagons measure ADAPTER    print F1 by shape of base and adapter on
                                                          200 other scenes
"""

import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from export.scenes import Tally
from export.scenes.scoring import match_boxes
from tests.support.export_cli import ROOT
from tests.support.hexagon_scenes import (
    FIRST_TEST_SEED,
    FIRST_TRAINING_SEED,
    NAMES,
    HexagonScene,
    hexagon_scene,
    named_scene,
    write_coco,
    write_hexagon_coco,
)
from tests.support.running_service import running_service
from tests.support.scene_images import encoded

NUM_TRAINING_SCENES = 500
NUM_TEST_SCENES = 200
NUM_NAMED_SCENES = 200
MIN_IOU = 0.5
FIELDS: dict[str, dict[str, str | list[str]]] = {
    "florence-2-mini": {"task": "object_detection"},
    "paligemma-mini": {"task": "open_vocabulary_detection", "labels": list(NAMES)},
}


def measure(adapter: Path) -> None:
    """Serve an adapter and its base from the repository's own store; print a table."""
    base = Path(
        json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    ).name
    scenes = [hexagon_scene(FIRST_TEST_SEED + index) for index in range(NUM_TEST_SCENES)]
    kinds = {
        "all": scenes,
        "without hexagons": [scene for scene in scenes if not scene.has_hexagon],
    }
    with TemporaryDirectory() as folder:
        shutil.copytree(adapter, Path(folder) / "adapters" / "tuned")
        settings = {"DIPTYCH_MODELS": base, "DIPTYCH_ADAPTERS": str(Path(folder) / "adapters")}
        with (
            running_service(ROOT / ".bentoml", Path(folder) / "log", **settings) as running,
            running.client() as http,
        ):
            print("| scenes | model |", " | ".join(NAMES), "|")
            for kind, some in kinds.items():
                for model in (base, "tuned"):
                    found = f1_by_shape(http, {"model": model, **FIELDS[base]}, some)
                    print(
                        f"| {kind} | {model} |",
                        " | ".join(shown(found[name]) for name in NAMES),
                        "|",
                    )


def f1_by_shape(
    http: httpx.Client, fields: dict[str, str | list[str]], scenes: Iterable[HexagonScene]
) -> dict[str, Tally]:
    tallies = defaultdict[str, Tally](Tally)
    for scene in scenes:
        answer = http.post("/v1/predict", data=fields, files={"image": encoded(scene.image)})
        detections = answer.raise_for_status().json()["result"]["detections"]
        for name in NAMES:
            found = [each for each in detections if each["label"] == name]
            tallies[name] += match_boxes(
                found, [each for each in scene.objects if each.label == name], MIN_IOU
            )
    return tallies


def shown(tally: Tally) -> str:
    return f"{tally.f1:.3f}" if tally.num_answered + tally.num_expected else ""


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["scenes", folder]:
            write_hexagon_coco(Path(folder), FIRST_TRAINING_SEED, NUM_TRAINING_SCENES)
        case ["named", folder]:
            seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + NUM_NAMED_SCENES)
            write_coco(Path(folder), map(named_scene, seeds))
        case ["measure", adapter]:
            measure(Path(adapter))
        case _:
            sys.exit(__doc__)
