"""The service by `bentoml serve`, and by `make serve` of a hub's repository."""

import sys
from pathlib import Path

import pytest

from tests.support.export_cli import MODELS, ModelStore
from tests.support.hub import COMMIT, REPOSITORY, running_hub
from tests.support.running_service import OPEN, RunningService, free_port, running_service
from tests.system.service_metrics import metric
from tests.system.test_answers import FLORENCE, REQUESTS, without_varying
from wire.artifacts.manifest import read_manifest

pytestmark = pytest.mark.long

HUB_MODEL = f"hf:{REPOSITORY}"
HUB_MODEL_ID = "tests--florence-2-mini"
EXPORT_TIMEOUT_S = 400  # start included
# The environment is there; make would install it first.
MAKE = ("make", "--old-file=.venv/installed-export", f"PY={sys.executable}")


def test_bentoml_serve(exported: ModelStore, service: RunningService, tmp_path: Path) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    log = tmp_path / "bentoml.log"
    with running_service(exported.home, log, OPEN, command, DIPTYCH_PORT=port) as served:
        for request in REQUESTS:
            fields = {"model": FLORENCE} | request
            answer = served.predict(**fields).raise_for_status().json()
            expected = service.predict(**fields).raise_for_status().json()
            assert without_varying(answer) == without_varying(expected)
        assert metric(served, "diptych_batch_size_count", model=FLORENCE, stage="encode") == 1


def test_make_serve_of_a_repository(tmp_path: Path) -> None:
    """For `make test`, test_hub.py exports it with few probes."""
    store = ModelStore(tmp_path / "bentoml")
    command = (*MAKE, f"MODELS={HUB_MODEL}", "serve")
    log = tmp_path / "log"
    with running_hub(MODELS / FLORENCE) as hub:
        environment = hub.environment(tmp_path / "cache") | {"MAKEFLAGS": ""}
        served = running_service(store.home, log, OPEN, command, EXPORT_TIMEOUT_S, **environment)
        with served as service:
            with service.client() as http:
                (model,) = http.get("/v1/models").raise_for_status().json()["data"]
            answer = service.predict(task="captioning", model=HUB_MODEL_ID).raise_for_status()
    assert not service.is_ready()  # it ends with make
    assert (model["id"], model["parameters"], model["resolution"]) == (HUB_MODEL_ID, 2610240, 192)
    assert answer.json()["result"]["text"]
    manifest = read_manifest(store.newest(HUB_MODEL_ID))
    assert (manifest.source, manifest.revision) == (REPOSITORY, COMMIT)
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port: nothing listens
    again = store.export("--if-changed", HUB_MODEL, **environment)
    assert again.stdout == f"{HUB_MODEL_ID}: up to date\n", again.stderr
