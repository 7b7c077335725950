"""The models of the bench: the embedded checkpoints, and Florence-2-base with random weights.

An `endless` checkpoint always generates `max_new_tokens`: its end token is an unused row of the
vocabulary. Random weights are endless, because they do not predict the end token.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from export.artifacts.store import has_current_version, new_version
from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import ExportOptions, plan_job
from export.checks.parity import ProbePlan
from export.pipeline import make_artifacts
from export.progress import NUM_STEPS, Progress
from laboratory.bench.material.records import Scale
from tasks.catalog import CatalogEntry, load_catalog
from tests.support.random_weights import write_random_checkpoint
from wire.artifacts.manifest import CONFIG_FILE, GENERATION_CONFIG_FILE

ALL_LAYERS = 100
RANDOM_GAIN = 0.5  # makes int8 as accurate in the random encoder as in trained ones
_PROBES = ProbePlan(2, 12)  # parity check: real widths take seconds per probe
_NOT_ENDLESS = ("forced_eos_token_id", "num_beams", "early_stopping")


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model of the bench, derived from an entry of models/catalog.yaml."""

    id: str
    scale: Scale
    entry_id: str
    is_random: bool = False
    is_endless: bool = False


BENCH_MODELS = (
    BenchModel("florence-2-mini", "embedded", "florence-2-mini"),
    BenchModel("paligemma-mini", "embedded", "paligemma-mini"),
    BenchModel("florence-2-mini-endless", "embedded", "florence-2-mini", is_endless=True),
    BenchModel("paligemma-mini-endless", "embedded", "paligemma-mini", is_endless=True),
    BenchModel(
        "florence-2-base-random", "base", "florence-2-base", is_random=True, is_endless=True
    ),
)


def checkpoint_folder(model: BenchModel, folder: Path) -> Path:
    """Return the folder of a model's checkpoint."""
    return folder / "checkpoints" / model.id


def encoder_graph_file(model: BenchModel, folder: Path) -> Path:
    """Return the plainly exported encoder, which an endless checkpoint shares."""
    return folder / "encoders" / f"{model.entry_id}.onnx"


def make_models(models: Sequence[BenchModel], folder: Path) -> Mapping[str, CatalogEntry]:
    """Write checkpoints and catalog, and artifacts that are not up to date; return the catalog."""
    catalog = write_checkpoints(models, folder)
    for model in models:
        # Without photographs the default precisions stay as they are: the answers of random weights
        # are arbitrary.
        job = replace(plan_job(catalog[model.id], ExportOptions()), photographs=())
        if has_current_version(model.id, job.build_key):
            print(f"{model.id}: up to date", flush=True)
            continue
        with new_version(model.id) as artifacts, Progress(model.id, NUM_STEPS) as progress:
            manifest = make_artifacts(job, artifacts, progress, probe_plan=_PROBES)
        tokens = manifest.parity["tokens"]
        print(
            f"{model.id}: exported: {tokens['num_tokens']} tokens as transformers',"
            f" {tokens['num_near_ties']} near ties",
            flush=True,
        )
    return catalog


def write_checkpoints(models: Sequence[BenchModel], folder: Path) -> Mapping[str, CatalogEntry]:
    """Write checkpoints and catalog of `models`; return the catalog."""
    for model in models:
        write_checkpoint(model, checkpoint_folder(model, folder))
    return write_catalog(models, folder)


def write_checkpoint(model: BenchModel, folder: Path) -> None:
    """Write a checkpoint: a random one once, an embedded one always, as it may be retrained."""
    if not model.is_random:
        shutil.copytree(ROOT / "models" / model.entry_id, folder, dirs_exist_ok=True)
    elif not (folder / GENERATION_CONFIG_FILE).is_file():
        write_random_checkpoint(model.entry_id, folder, ALL_LAYERS, gain=RANDOM_GAIN)
    if model.is_endless:
        # The end token is the last row of the vocabulary, a padding row; nothing forces an end.
        rules_file = folder / GENERATION_CONFIG_FILE
        text_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["text_config"]
        rules = json.loads(rules_file.read_text(encoding="utf-8"))
        kept = {name: value for name, value in rules.items() if name not in _NOT_ENDLESS}
        kept["eos_token_id"] = text_config["vocab_size"] - 1
        rules_file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_catalog(models: Sequence[BenchModel], folder: Path) -> Mapping[str, CatalogEntry]:
    """Write a catalog: entries of models/catalog.yaml with the bench's ids and checkpoints."""
    listed = yaml.safe_load(CATALOG_FILE.read_text(encoding="utf-8"))["models"]
    by_id = {entry["id"]: entry for entry in listed}
    entries = list[dict[str, Any]]()
    for model in models:
        source = str(checkpoint_folder(model, folder).resolve())
        own = {"id": model.id, "source": source, "revision": None, "weights_sha256": None}
        entries.append(by_id[model.entry_id] | own)
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"models": entries}, sort_keys=False), encoding="utf-8")
    return load_catalog(file)
