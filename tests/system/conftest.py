import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService
from wire.artifacts.manifest import GENERATION_CONFIG_FILE, MANIFEST_FILE

UNKNOWN_TOKEN_ID = 3  # <unk>


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder for the services of a file of tests."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(params=["rest", "grpc"])
def url(request: pytest.FixtureRequest, service: RunningService) -> str:
    return service.url if request.param == "rest" else f"grpc://{service.grpc_address}"


@pytest.fixture(scope="session")
def endless(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """The models, where every answer has the maximum length."""
    store = ModelStore(tmp_path_factory.mktemp("endless") / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    for folder in map(store.newest, EMBEDDED):
        config = json.loads((folder / GENERATION_CONFIG_FILE).read_text())
        config.pop("forced_eos_token_id", None)
        content = json.dumps(config | {"eos_token_id": UNKNOWN_TOKEN_ID}).encode()
        (folder / GENERATION_CONFIG_FILE).write_bytes(content)
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        manifest["files"][GENERATION_CONFIG_FILE] = hashlib.sha256(content).hexdigest()
        (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return store
