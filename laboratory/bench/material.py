"""Prepare the models and questions of `make bench`: `python -m laboratory.bench.material FOLDER
MODEL…`.

FOLDER/checkpoints/ID/   for the peers, which use transformers
FOLDER/catalog.yaml      for our service; the artifacts are in the store of BENTOML_HOME
FOLDER/images/PX/N.png   rendered scenes
FOLDER/ID.json           the questions about each image

`florence-2-base-random` has the shapes of Florence-2-base and random weights, which do not predict
an end: each answer has as many tokens as are requested. A question is one request and one sequence
for every server, so only those with a single prompt are used.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from export.artifacts.store import has_current_version, new_version
from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import ExportOptions, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
from export.scenes import render_scene
from laboratory.bench.load import RANDOM_MODEL, BenchQuestion, Scenes, checkpoint_folder
from laboratory.bench.random_weights import FLORENCE_2_BASE, write_random_checkpoint
from laboratory.questions import question_prompts, questions
from laboratory.scenes import evaluation_scene, png
from tasks.catalog import CatalogEntry, load_catalog
from wire.artifacts.manifest import CONFIG_FILE, GENERATION_CONFIG_FILE

_ALL_LAYERS = 100
_GAIN = 0.5  # makes int8 as accurate in the random encoder as in trained ones
_PROBES = ProbePlan(2, 12)  # parity check: real widths take seconds per probe
_FREE_LENGTH = 128  # embedded checkpoints predict the end token
# Tokens of random weights, about as many as Florence-2-base generates for a photograph.
_RANDOM_LENGTHS = {
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


def main(arguments: Sequence[str]) -> None:
    """Write what is missing."""
    folder = Path(arguments[0])
    for model, entry in make_models(folder, arguments[1:]).items():
        scenes = make_scenes(folder, entry)
        rows = [[asdict(question) for question in scene] for scene in scenes]
        (folder / f"{model}.json").write_text(json.dumps(rows), encoding="utf-8")


def make_models(folder: Path, models: Sequence[str]) -> dict[str, CatalogEntry]:
    """Write checkpoints and catalog, and artifacts that are not up to date; return the catalog.

    Without photographs the default precisions stay: the answers of random weights are arbitrary.
    """
    for model in models:
        _write_checkpoint(model, checkpoint_folder(folder, model))
    catalog = write_catalog(folder, models)
    for entry in catalog.values():
        job = replace(plan_job(entry, ExportOptions()), photographs=())
        if not has_current_version(entry.id, job.build_key):
            with new_version(entry.id) as artifacts, Progress(entry.id, NUM_STEPS) as progress:
                make_artifacts(job, artifacts, progress, probe_plan=_PROBES)
    return catalog


def _write_checkpoint(model: str, folder: Path) -> None:
    """Write a checkpoint: a random one once, an embedded one always, as it may be retrained."""
    rules_file = folder / GENERATION_CONFIG_FILE
    if model != RANDOM_MODEL:
        shutil.copytree(ROOT / "models" / model, folder, dirs_exist_ok=True)
    elif not rules_file.is_file():
        write_random_checkpoint(FLORENCE_2_BASE, folder, _ALL_LAYERS, gain=_GAIN)
        # The end token is the last row of the vocabulary, a padding row; nothing forces an end.
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        rules = json.loads(rules_file.read_text(encoding="utf-8"))
        for name in ("forced_eos_token_id", "num_beams", "early_stopping"):
            rules.pop(name, None)
        rules["eos_token_id"] = config["text_config"]["vocab_size"] - 1
        rules_file.write_text(json.dumps(rules, indent=2) + "\n", encoding="utf-8")


def write_catalog(folder: Path, models: Sequence[str]) -> dict[str, CatalogEntry]:
    """Write a catalog with entries of models/catalog.yaml over the bench's checkpoints."""
    listed = yaml.safe_load(CATALOG_FILE.read_text(encoding="utf-8"))["models"]
    by_id = {entry["id"]: entry for entry in listed}
    entries = []
    for model in models:
        source = str(checkpoint_folder(folder, model).resolve())
        entry = by_id["florence-2-base" if model == RANDOM_MODEL else model]
        changes = {"id": model, "source": source, "revision": None, "weights_sha256": None}
        entries.append(entry | changes)
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"models": entries}, sort_keys=False), encoding="utf-8")
    return dict(load_catalog(file))


def make_scenes(folder: Path, entry: CatalogEntry) -> Scenes:
    """Write the images of a model that do not exist yet; return the questions about each."""
    is_random = entry.id == RANDOM_MODEL
    size_px, num_scenes = (768, 120) if is_random else (384, 400)
    images = folder.resolve() / "images" / str(size_px)
    images.mkdir(parents=True, exist_ok=True)
    scenes = []
    for index in range(num_scenes):
        scene = evaluation_scene(index)
        image = images / f"{index}.png"
        if not image.exists():
            image.write_bytes(png(render_scene(scene, size_px)))
        scene_questions = []
        for question in questions(scene):
            scaled = question.scaled((size_px, size_px))
            prompts = question_prompts(entry, scaled, (size_px, size_px))
            if len(prompts) != 1:
                continue
            text = "".join(segment.text for segment in prompts[0].segments)
            length = _FREE_LENGTH
            if is_random:
                length = _RANDOM_LENGTHS.get(question.name, _SHORT_LENGTH)
            fields = {"task": question.task, **scaled.parameters}
            scene_questions.append(BenchQuestion(str(image), fields, text, length))
        scenes.append(scene_questions)
    return scenes


if __name__ == "__main__":
    main(sys.argv[1:])
