"""The endless models with a NaN in florence-2-mini: an answer fails when it reaches that
position.
"""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.support.endless_models import endless_models
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import DECODER_FILE, MANIFEST_FILE

POISONED_MODEL = "florence-2-mini"
POISONED_POSITION = 150
_POSITIONS = "model.language_model.decoder.embed_positions.weight"


def poisoned_models(exported: ModelStore, home: Path) -> ModelStore:
    """Copy the exported models into another BentoML home, without an end token and with a poisoned
    position.
    """
    store = endless_models(exported, home)
    folder = store.newest(POISONED_MODEL)
    weights = load_file(folder / DECODER_FILE)
    weights[_POSITIONS][POISONED_POSITION] = float("nan")
    save_file(weights, folder / DECODER_FILE)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][DECODER_FILE] = hashlib.sha256(
        (folder / DECODER_FILE).read_bytes()
    ).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return store
