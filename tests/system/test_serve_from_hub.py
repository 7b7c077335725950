"""`make serve MODELS=hf:owner/name`: a repository that the catalog does not have is fetched,
exported and served by its name. For `make test`, test_hub.py exports it with few probes.
"""

import sys
from pathlib import Path

import pytest

from tests.support.export_cli import MODELS, ModelStore
from tests.support.hub import COMMIT, REPOSITORY, running_hub
from tests.support.running_service import OPEN, running_service
from tests.support.scene_images import scene_png
from wire.artifacts.manifest import read_manifest

NAME = f"hf:{REPOSITORY}"
MODEL_ID = "tests--florence-2-mini"
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing listens
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
def test_a_repository_is_exported_and_served_by_its_name(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "bentoml")
    with running_hub(MODELS / "florence-2-mini") as hub:
        environment = hub.environment(tmp_path / "cache") | {"MAKEFLAGS": ""}
        with (
            running_service(
                store.home, tmp_path / "log", OPEN, MAKE_SERVE, START_TIMEOUT_S, **environment
            ) as service,
            service.client() as http,
        ):
            (listed,) = http.get("/v1/models").raise_for_status().json()["data"]
            answer = http.post(
                "/v1/predict",
                data={"task": "captioning", "model": MODEL_ID},
                files={"image": scene_png(6)},
            )
    assert not service.is_ready()  # it ends with make
    assert (listed["id"], listed["parameters"], listed["resolution"]) == (MODEL_ID, 2610240, 192)
    assert answer.raise_for_status().json()["result"]["text"]
    manifest = read_manifest(store.newest(MODEL_ID))
    assert (manifest.source, manifest.revision) == (REPOSITORY, COMMIT)
    again = store.export("--if-changed", NAME, **environment | {"HF_ENDPOINT": UNREACHABLE})
    assert again.stdout == f"{MODEL_ID}: up to date\n", again.stderr
