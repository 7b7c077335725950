"""The store of artifact folders: BentoML's model store, with one entry per model. Alone in importing BentoML here."""

from pathlib import Path

import bentoml

from runners.artifacts.manifest import ArtifactError


def artifact_folder(model_id: str) -> Path:
    """Return the folder of the latest export of `model_id`; raise `ArtifactError` if there is none."""
    try:
        return Path(bentoml.models.get(f"{model_id}:latest").path)
    except bentoml.exceptions.NotFound as error:
        message = f"no artifacts of {model_id} in BentoML's model store; make them with: python -m export {model_id}"
        raise ArtifactError(message) from error
