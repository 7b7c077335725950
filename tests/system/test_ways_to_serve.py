"""The service as other hosts and commands run it: without what Linux alone has, by `bentoml
serve`, and by `make serve` of a hub's repository.
"""

import sys
from pathlib import Path

import psutil
import pytest

from tests.support.export_cli import MODELS, ModelStore
from tests.support.hub import COMMIT, REPOSITORY, running_hub
from tests.support.processes import WITHOUT_LINUX, descendants, is_alive
from tests.support.running_service import OPEN, RunningService, free_port, running_service
from tests.support.waiting import wait_until
from tests.system.service_metrics import metric
from tests.system.test_answers import FLORENCE, REQUESTS, without_varying
from wire.artifacts.manifest import read_manifest

pytestmark = pytest.mark.long

HUB_MODEL = f"hf:{REPOSITORY}"
HUB_MODEL_ID = "tests--florence-2-mini"
EXPORT_TIMEOUT_S = 400  # start included
# The environment is there; make would install it first.
MAKE = ("make", "--old-file=.venv/installed-export", f"PY={sys.executable}")


def assert_equal_answers(one: RunningService, other: RunningService) -> None:
    for request in REQUESTS:
        fields = {"model": FLORENCE} | request
        answers = [running.predict(**fields).raise_for_status() for running in (one, other)]
        assert without_varying(answers[0].json()) == without_varying(answers[1].json())


def test_portable_service(exported: ModelStore, service: RunningService, tmp_path: Path) -> None:
    settings = {"DIPTYCH_PORTABLE": "true"} | WITHOUT_LINUX
    with running_service(exported.home, tmp_path / "log", **settings) as portable:
        assert_equal_answers(portable, service)
        processes = descendants(portable.process.pid)
        assert len(processes) == 3  # the gateway and two runners
        variable = "PROMETHEUS_MULTIPROC_DIR"
        (folder,) = {psutil.Process(pid).environ()[variable] for pid in processes}
        assert not Path(folder).is_relative_to("/dev/shm")
        portable.process.kill()
        portable.process.wait()
        wait_until(lambda: not any(map(is_alive, processes)))


def test_bentoml_serve(exported: ModelStore, service: RunningService, tmp_path: Path) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    log = tmp_path / "bentoml.log"
    with running_service(exported.home, log, OPEN, command, DIPTYCH_PORT=port) as served:
        assert_equal_answers(served, service)
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
