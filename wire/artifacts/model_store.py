"""The store of artifact folders: BentoML's model store, with one entry per model.

It is in BENTOML_HOME, by default `.bentoml` in the repository. Alone in importing BentoML here.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import bentoml

from wire.artifacts.manifest import ArtifactError, Manifest, read_manifest

# BentoML reads it at its first use of a store, in child processes too
os.environ.setdefault("BENTOML_HOME", str(Path(__file__).parents[2] / ".bentoml"))


def store_home() -> Path:
    return Path(os.environ["BENTOML_HOME"]).expanduser()


def artifact_folder(model_id: str) -> Path:
    """Return the folder of the latest export of `model_id`; raise `ArtifactError`."""
    try:
        return Path(bentoml.models.get(f"{model_id}:latest").path)
    except bentoml.exceptions.NotFound as error:
        problem = f"no artifacts of {model_id} in BentoML's model store"
        raise ArtifactError(f"{problem}; make them with: python -m export {model_id}") from error


def read_adapters(adapter_ids: Sequence[str], base: Manifest) -> list[tuple[Path, Manifest]]:
    """Return folder and manifest of each adapter; raise `ArtifactError` for another base."""
    folders = [artifact_folder(adapter_id) for adapter_id in adapter_ids]
    adapters = [(folder, read_manifest(folder)) for folder in folders]
    for _, manifest in adapters:
        check_base(manifest, base)
    return adapters


def check_base(adapter: Manifest, base: Manifest) -> None:
    """Raise `ArtifactError` unless `adapter` was exported over this build of `base`."""
    if (adapter.adapter_of, adapter.base_build_key) != (base.model_id, base.build_key):
        problem = f"{adapter.model_id} is for another build of {base.model_id}; export the adapter"
        raise ArtifactError(f"{problem} again: python -m export {adapter.model_id}")
