"""Artifact folders in BentoML's model store.

The only module of the export that uses the store; needs no torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import bentoml

from wire.artifacts.manifest import ArtifactError, Manifest, read_manifest, verify_files
from wire.artifacts.model_store import artifact_folder


@contextmanager
def new_version(model_id: str) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes the newest version, unless the block raises."""
    with bentoml.models.create(model_id) as model:
        yield Path(model.path)


def verified(model_id: str) -> tuple[Path, Manifest]:
    """Return the newest version, whose files match its manifest; raise `ArtifactError`."""
    folder = artifact_folder(model_id)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return folder, manifest


def verified_manifest(model_id: str) -> Manifest | None:
    """Return the newest version's manifest; None unless its files match it."""
    with suppress(ArtifactError):
        return verified(model_id)[1]
    return None


def exported_models() -> list[str]:
    return sorted({model.tag.name for model in bentoml.models.list()})
