"""The models of the bench: the embedded checkpoints, and Florence-2-base with random weights.

An `endless` checkpoint writes exactly as many tokens as it is asked for: its end token is a row of the vocabulary that
no token uses. Random weights are endless, as their answers end nowhere else.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from export.jobs import ExportJob, ExportOptions, plan_job
from export.pipeline import make_artifacts
from export.random_checkpoints import write_random_checkpoint
from export.store import has_current_version, new_version
from runners.artifacts.manifest import CONFIG_FILE, GENERATION_CONFIG_FILE
from tasks.catalog import CatalogEntry, load_catalog

ROOT = Path(__file__).parents[2]
Scale = Literal["embedded", "base"]

_ALL_LAYERS = 100
_GAIN = 0.5  # at which int8 holds for the random encoder as it does for trained ones
_NUM_PROBES, _MAX_NEW_TOKENS = 2, 12  # of an export's parity: real widths take seconds for each
_NOT_ENDLESS = ("forced_eos_token_id", "num_beams", "early_stopping")


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model of the bench, and the entry of models/catalog.yaml that it is made from."""

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
    BenchModel("florence-2-base-random", "base", "florence-2-base", is_random=True, is_endless=True),
)


def checkpoint_folder(model: BenchModel, folder: Path) -> Path:
    """Return where the checkpoint of a model lies."""
    return folder / "checkpoints" / model.id


def make_models(models: Sequence[BenchModel], folder: Path) -> Mapping[str, CatalogEntry]:
    """Make checkpoints, catalog and artifacts of `models` where they are not yet; return the catalog."""
    for model in models:
        write_checkpoint(model, checkpoint_folder(model, folder))
    catalog = write_catalog(models, folder)
    for model in models:
        job = plan_job(catalog[model.id], ExportOptions(), ROOT)
        print(
            f"{model.id}: {'up to date' if has_current_version(model.id, job.build_key) else _export(job)}", flush=True
        )
    return catalog


def _export(job: ExportJob) -> str:
    with new_version(job.entry.id) as artifacts:
        manifest = make_artifacts(job, artifacts, _NUM_PROBES, _MAX_NEW_TOKENS)
    return f"exported, {manifest.parity}"


def write_checkpoint(model: BenchModel, folder: Path) -> None:
    """Write a checkpoint into `folder`: a random one only once, an embedded one anew, as it may have been trained."""
    if not model.is_random:
        shutil.copytree(ROOT / "models" / model.entry_id, folder, dirs_exist_ok=True)
    elif not (folder / GENERATION_CONFIG_FILE).is_file():
        write_random_checkpoint(model.entry_id, folder, _ALL_LAYERS, gain=_GAIN)
    if model.is_endless:
        _make_endless(folder)


def _make_endless(folder: Path) -> None:
    """Name the last row of the vocabulary, a padding row, as the end token; drop what forces ends and beams."""
    file = folder / GENERATION_CONFIG_FILE
    text_config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["text_config"]
    rules = json.loads(file.read_text(encoding="utf-8")) | {"eos_token_id": text_config["vocab_size"] - 1}
    kept = {name: value for name, value in rules.items() if name not in _NOT_ENDLESS}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_catalog(models: Sequence[BenchModel], folder: Path) -> Mapping[str, CatalogEntry]:
    """Write the entries of models/catalog.yaml that the models come from, with their own ids and checkpoints."""
    file = folder / "catalog.yaml"
    file.write_text(yaml.safe_dump({"models": list(_entries(models, folder))}, sort_keys=False), encoding="utf-8")
    return load_catalog(file)


def _entries(models: Sequence[BenchModel], folder: Path) -> Iterator[dict[str, Any]]:
    listed = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    by_id = {entry["id"]: entry for entry in listed}
    for model in models:
        source = {"id": model.id, "source": str(checkpoint_folder(model, folder).resolve()), "revision": None}
        yield by_id[model.entry_id] | source
