"""Artifact folders in BentoML's model store.

The only module of the export that uses the store; needs no torch.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml

from export.errors import ExportError, is_disk_full
from tasks.catalog import CatalogEntry
from wire.artifacts.manifest import ArtifactError, read_manifest, verify_files
from wire.artifacts.model_store import artifact_folder, store_home


@contextmanager
def new_version(model_id: str) -> Iterator[Path]:
    """Yield an empty folder that becomes the newest version of `model_id`, unless the block raises.

    BentoML copies the folder to the store, and removes it with its object of the model. Raise
    `ExportError` if the disk has no room for the folder, or for its copy in the store.
    """
    try:
        with bentoml.models.create(model_id) as model:
            yield Path(model.path)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise ExportError(
            f"no space left for the artifacts of {model_id}; they are made in"
            f" {tempfile.gettempdir()} (TMPDIR) and stored in {store_home()} (BENTOML_HOME): free"
            " some, or set the variable to a larger disk"
        ) from error


def has_current_version(model_id: str, build_key: str) -> bool:
    """Return True if the newest version has this build key and its files match its manifest."""
    try:
        folder = artifact_folder(model_id)
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
    except ArtifactError:
        return False
    return manifest.build_key == build_key


def folder_of_current(entry: CatalogEntry) -> str | None:
    """Return the folder that the newest version was exported from, where the catalog has a
    repository.

    None unless its files match its manifest.
    """
    try:
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        if manifest.revision is not None or manifest.source == entry.source:
            return None
        verify_files(folder, manifest)
    except ArtifactError:
        return None
    return manifest.source


def exported_models() -> list[str]:
    """Return the ids of all stored models, sorted."""
    return sorted({model.tag.name for model in bentoml.models.list()})
