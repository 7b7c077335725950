"""The embedded models without their end token: every answer has the maximum length."""

import hashlib
import json
import shutil
from pathlib import Path

from tests.support.export_cli import EMBEDDED, ModelStore
from wire.artifacts.manifest import GENERATION_CONFIG_FILE, MANIFEST_FILE

_UNKNOWN_TOKEN_ID = 3  # <unk>


def endless_models(exported: ModelStore, home: Path) -> ModelStore:
    """Copy the exported models into another BentoML home."""
    shutil.copytree(exported.home, home, symlinks=True)
    store = ModelStore(home)
    for folder in map(store.newest, EMBEDDED):
        config = json.loads((folder / GENERATION_CONFIG_FILE).read_text())
        config.pop("forced_eos_token_id", None)
        content = json.dumps(config | {"eos_token_id": _UNKNOWN_TOKEN_ID}).encode()
        (folder / GENERATION_CONFIG_FILE).write_bytes(content)
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        manifest["files"][GENERATION_CONFIG_FILE] = hashlib.sha256(content).hexdigest()
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return store
