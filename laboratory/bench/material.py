"""Prepare the model and questions of `make bench`: `python -m laboratory.bench.material FOLDER`.

FOLDER/checkpoint/      for the peers, which use transformers
FOLDER/catalog.yaml     for our service; the artifacts are in the store of BENTOML_HOME
FOLDER/images/N.png     rendered scenes
FOLDER/questions.json   the questions about each image

`florence-2-base-random` has the shapes of Florence-2-base and random weights, which do not predict
an end: each answer has as many tokens as are requested. A question is one request and one sequence
for every server, so only those with a single prompt are used.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from numpy.random import default_rng

from export.artifacts.store import new_version, verified_manifest
from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import ExportOptions, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from export.scenes import (
    CANVAS_PX,
    COLORS,
    SHAPES,
    BoxXYXY,
    Scene,
    box_xyxy,
    render_scene,
)
from laboratory.bench.load import RANDOM_MODEL, BenchQuestion, Scenes
from laboratory.bench.random_weights import (
    FLORENCE_2_BASE,
    PALIGEMMA_3B,
    Shape,
    write_random_checkpoint,
)
from laboratory.scenes import evaluation_scene, png
from tasks.catalog import CatalogEntry, load_catalog
from tasks.errors import UnsupportedTask
from tasks.families import FAMILIES
from tasks.prompts import Prompt
from tasks.table import TASKS, parse_parameters
from wire.artifacts.manifest import CONFIG_FILE, GENERATION_CONFIG_FILE

_GAIN = 0.5  # makes int8 as accurate in the random encoder as in trained ones
_PROBES = ProbePlan(2, 12)  # parity check: real widths take seconds per probe
_SIZE_PX = 768


@dataclass(frozen=True, slots=True)
class SceneRequest:
    """A task with its parameters, about a scene."""

    task: str
    parameters: dict[str, Any]
    # of random weights, about as many as Florence-2-base generates for a photograph
    num_tokens: int = 8


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A checkpoint of random weights, and the catalog's entry for which it stands."""

    id: str
    base: str
    shape: Shape
    max_layers: int = 100
    changes: Mapping[str, Any] = field(default_factory=dict)  # to the entry


FLORENCE_2 = RandomModel(RANDOM_MODEL, "florence-2-base", FLORENCE_2_BASE)
_NUMBERS = {"parameters": 780_805_664, "mask_decoder": str(ROOT / "models/paligemma-mini/vae.npz")}
PALIGEMMA = RandomModel(
    "paligemma-3b-random", "paligemma-3b-mix-224", PALIGEMMA_3B, max_layers=2, changes=_NUMBERS
)
RANDOM_MODELS = {FLORENCE_2.id: FLORENCE_2, PALIGEMMA.id: PALIGEMMA}


def main(folder: Path) -> None:
    """Write what is missing."""
    rows = []
    for scene in make_scenes(folder, make_model(folder)):
        rows.append([asdict(question) for question in scene])
    (folder / "questions.json").write_text(json.dumps(rows), encoding="utf-8")


def make_model(folder: Path, model: RandomModel = FLORENCE_2) -> CatalogEntry:
    """Write what is out of date; without photographs the default precisions stay."""
    checkpoint = folder / "checkpoint"
    rules_file = checkpoint / GENERATION_CONFIG_FILE
    if not rules_file.is_file():
        write_random_checkpoint(model.shape, checkpoint, model.max_layers, gain=_GAIN)
        # The end token is the last row of the vocabulary, a padding row; nothing forces an end.
        config = json.loads((checkpoint / CONFIG_FILE).read_text(encoding="utf-8"))
        rules = json.loads(rules_file.read_text(encoding="utf-8"))
        for name in ("forced_eos_token_id", "num_beams", "early_stopping"):
            rules.pop(name, None)
        rules["eos_token_id"] = config["text_config"]["vocab_size"] - 1
        rules_file.write_text(json.dumps(rules, indent=2) + "\n", encoding="utf-8")
    entry = write_catalog(folder, model)
    job = replace(plan_job(entry, ExportOptions()), photographs=())
    current = verified_manifest(entry.id)
    if current is None or current.build_key != job.build_key:
        with new_version(entry.id) as artifacts:
            make_artifacts(job, artifacts, probe_plan=_PROBES)
    return entry


def write_catalog(folder: Path, model: RandomModel = FLORENCE_2) -> CatalogEntry:
    """Write a catalog with the entry of the model over its checkpoint."""
    listed = yaml.safe_load(CATALOG_FILE.read_text(encoding="utf-8"))["models"]
    (base,) = (entry for entry in listed if entry["id"] == model.base)
    source = str((folder / "checkpoint").resolve())
    entry = base | {"id": model.id, "source": source, "revision": None, "weights_sha256": None}
    entry |= model.changes
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"models": [entry]}, sort_keys=False), encoding="utf-8")
    return load_catalog(file)[model.id]


def make_scenes(folder: Path, entry: CatalogEntry, num_scenes: int = 120) -> Scenes:
    """Write the images that do not exist yet; return the questions about each."""
    images = folder.resolve() / "images"
    images.mkdir(parents=True, exist_ok=True)
    scenes = []
    for index in range(num_scenes):
        scene = evaluation_scene(index)
        image = images / f"{index}.png"
        if not image.exists():
            image.write_bytes(png(render_scene(scene, _SIZE_PX)))
        scene_questions = []
        for request in scene_requests(scene, _SIZE_PX):
            prompts = _prompts(entry, request)
            if len(prompts) == 1:
                text = "".join(segment.text for segment in prompts[0])
                fields = {"task": request.task, **request.parameters}
                question = BenchQuestion(str(image), fields, text, request.num_tokens)
                scene_questions.append(question)
        scenes.append(scene_questions)
    return scenes


def scene_requests(scene: Scene, side_px: int) -> list[SceneRequest]:
    """Return requests of every task about a scene that is rendered at `side_px`.

    Florence-2 and PaliGemma offer some of them each.
    """
    rng = default_rng((scene.seed, len(scene.objects)))
    target = scene.objects[int(rng.integers(len(scene.objects)))] if scene.objects else None
    names = [drawn.name for drawn in scene.objects]
    absent = [name for name in map(" ".join, product(COLORS, SHAPES)) if name not in names]
    absent_name = absent[int(rng.integers(len(absent)))]
    several = rng.permutation([*names, absent_name]).tolist()
    phrases = [with_article(name) for name in names]
    requests = [
        SceneRequest("captioning", {"detail": "short"}, 12),
        SceneRequest("captioning", {"detail": "detailed"}, 48),
        SceneRequest("object_detection", {}, 40),
        SceneRequest("dense_region_captioning", {}, 64),
        SceneRequest("region_proposal", {}, 40),
    ]
    if target:
        region = _scaled(box_xyxy(target), side_px)
        some = rng.permutation(phrases)[: int(rng.integers(1, len(phrases) + 1))].tolist()
        requests += [
            SceneRequest("open_vocabulary_detection", {"labels": [target.shape]}),
            SceneRequest("open_vocabulary_detection", {"labels": [target.name]}),
            SceneRequest("open_vocabulary_detection", {"labels": several}),
            SceneRequest("phrase_grounding", {"caption": " and ".join(phrases)}),
            SceneRequest("phrase_grounding", {"phrases": some}),
            SceneRequest("instance_segmentation", {"phrase": target.name}, 64),
            SceneRequest("instance_segmentation", {"region": region}, 64),
        ]
    requests.append(SceneRequest("open_vocabulary_detection", {"labels": [absent_name]}))
    requests.append(SceneRequest("ocr", {}, 24))
    requests.append(SceneRequest("ocr_with_regions", {}, 48))
    questions = ["how many shapes are there?", "what does the text say?"]
    if scene.word:
        word_region = _scaled(scene.word.box_xyxy, side_px)
        parameters = {"detail": "text", "region": word_region}
        requests.append(SceneRequest("region_description", parameters))
    if target:
        for detail in ("category", "description"):
            parameters = {"detail": detail, "region": region}
            requests.append(SceneRequest("region_description", parameters))
        questions.insert(0, f"what color is the {target.shape}?")
        questions.insert(1, f"is there {with_article(target.name)}?")
    for question in questions:
        requests.append(SceneRequest("visual_question_answering", {"question": question}))
    return requests


def with_article(name: str) -> str:
    """Return `a red circle`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _scaled(box: BoxXYXY, side_px: int) -> list[float]:
    return [edge * side_px / CANVAS_PX for edge in box]


def _prompts(entry: CatalogEntry, request: SceneRequest) -> tuple[Prompt, ...]:
    """Return the prompts of a request; none if the model does not offer it."""
    if request.task not in entry.task_ids:
        return ()
    parameters = parse_parameters(TASKS[request.task], request.parameters)
    prompts_of = FAMILIES[entry.family].task_prompts
    try:
        return prompts_of(entry, request.task, parameters, (_SIZE_PX, _SIZE_PX))
    except UnsupportedTask:
        return ()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
