"""`make serve MODELS=hf:owner/name`: a repository that the catalog does not have is fetched,
exported and served by its name. For `make test`, test_hub.py exports it with few probes.
"""

import sys
from pathlib import Path

import pytest

from tests.support.export_cli import MODELS, ModelStore
from tests.support.hub import COMMIT, REPOSITORY, running_hub
from tests.support.running_service import OPEN, running_service
from wire.artifacts.manifest import read_manifest

NAME = f"hf:{REPOSITORY}"
MODEL_ID = "tests--florence-2-mini"
START_TIMEOUT_S = 400  # export included
# The environment is there; make would install it first.
MAKE_SERVE = (
    "make",
    "--old-file=.venv/installed-export",
    f"PY={sys.executable}",
    f"MODELS={NAME}",
    "serve",
)


@pytest.mark.long
def test_repository_is_served_by_its_name(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "bentoml")
    log = tmp_path / "log"
    with running_hub(MODELS / "florence-2-mini") as hub:
        environment = hub.environment(tmp_path / "cache") | {"MAKEFLAGS": ""}
        with running_service(
            store.home, log, OPEN, MAKE_SERVE, START_TIMEOUT_S, **environment
        ) as service:
            with service.client() as http:
                (model,) = http.get("/v1/models").raise_for_status().json()["data"]
            answer = service.predict(task="captioning", model=MODEL_ID).raise_for_status()
    assert not service.is_ready()  # it ends with make
    assert (model["id"], model["parameters"], model["resolution"]) == (MODEL_ID, 2610240, 192)
    assert answer.json()["result"]["text"]
    manifest = read_manifest(store.newest(MODEL_ID))
    assert (manifest.source, manifest.revision) == (REPOSITORY, COMMIT)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nothing listens
    again = store.export("--if-changed", NAME, **environment)
    assert again.stdout == f"{MODEL_ID}: up to date\n", again.stderr
