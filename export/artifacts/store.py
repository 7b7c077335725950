"""Artifact folders in BentoML's model store. The only module of the export that uses the store; needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bentoml

from runners.artifacts.manifest import ArtifactError, read_manifest, verify_files
from runners.artifacts.store import artifact_folder


@contextmanager
def new_version(model_id: str) -> Iterator[Path]:
    """Yield an empty folder that becomes the newest version of `model_id`, unless the block raises."""
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
