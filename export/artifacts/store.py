"""Artifact folders in BentoML's model store.

The only module of the export that uses the store; needs no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml

from tasks.catalog import CatalogEntry
from wire.artifacts.manifest import ArtifactError, read_manifest, verify_files
from wire.artifacts.model_store import artifact_folder


@contextmanager
def new_version(model_id: str) -> Iterator[Path]:
    """Yield an empty folder that becomes the newest version of `model_id`, unless the block raises.

    BentoML makes it in the folder of temporary files (TMPDIR), and copies it to the store.
    """
    with bentoml.models.create(model_id) as model:
        yield Path(model.path)


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
