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
from pathlib import Path
from typing import Any

import yaml

from export.artifacts.store import new_version, verified_manifest
from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import ExportOptions, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from export.scenes import render_scene
from laboratory.bench.load import RANDOM_MODEL, BenchQuestion, Scenes
from laboratory.bench.random_weights import (
    FLORENCE_2_BASE,
    PALIGEMMA_3B,
    Shape,
    write_random_checkpoint,
)
from laboratory.questions import Question, questions
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
# Tokens of random weights, about as many as Florence-2-base generates for a photograph.
_LENGTHS = {
    "captioning short": 12,
    "captioning detailed": 48,
    "object_detection": 40,
    "dense_region_captioning": 64,
    "region_proposal": 40,
    "instance_segmentation phrase": 64,
    "instance_segmentation region": 64,
    "ocr": 24,
    "ocr_with_regions": 48,
}
_SHORT_LENGTH = 8  # all other questions


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
    size_wh = (_SIZE_PX, _SIZE_PX)
    images = folder.resolve() / "images"
    images.mkdir(parents=True, exist_ok=True)
    scenes = []
    for index in range(num_scenes):
        scene = evaluation_scene(index)
        image = images / f"{index}.png"
        if not image.exists():
            image.write_bytes(png(render_scene(scene, _SIZE_PX)))
        scene_questions = []
        for question in questions(scene):
            scaled = question.scaled(size_wh)
            prompts = _prompts(entry, scaled)
            if len(prompts) == 1:
                text = "".join(segment.text for segment in prompts[0])
                fields = {"task": question.task, **scaled.parameters}
                length = _LENGTHS.get(question.name, _SHORT_LENGTH)
                scene_questions.append(BenchQuestion(str(image), fields, text, length))
        scenes.append(scene_questions)
    return scenes


def _prompts(entry: CatalogEntry, question: Question) -> tuple[Prompt, ...]:
    """Return the prompts of a question; none if the model does not offer it."""
    if question.task not in entry.task_ids:
        return ()
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    prompts_of = FAMILIES[entry.family].task_prompts
    try:
        return prompts_of(entry, question.task, parameters, (_SIZE_PX, _SIZE_PX))
    except UnsupportedTask:
        return ()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
