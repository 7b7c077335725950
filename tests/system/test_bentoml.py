"""BentoML as its users know it: the service runs under `bentoml serve`, and its Bento has BentoML's
own Dockerfile.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from operator import itemgetter
from pathlib import Path

import httpx
import pytest

from loadtest.processes import use_by_name
from tests.support.export_cli import ROOT, ModelStore
from tests.support.processes import descendants
from tests.support.running_service import (
    OPEN,
    SERVICE,
    RunningService,
    free_port,
    running_service,
    service_environment,
)
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric

MODEL = "florence-2-mini"


def answer_of(service: RunningService) -> httpx.Response:
    form = {"task": "captioning", "models": [MODEL]}
    return httpx.post(
        f"{service.url}/v1/compare", data=form, files={"image": scene_png()}, timeout=60
    )


@pytest.mark.long
def test_bentoml_serve_gives_the_answers_of_the_supervisor(
    exported: ModelStore, service: RunningService, tmp_path: Path
) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    settings = {"DIPTYCH_PORT": port, "DIPTYCH_MODELS": MODEL}
    with running_service(
        exported.home, tmp_path / "bentoml.log", OPEN, command, **settings
    ) as served:
        answers = [
            answer_of(each).raise_for_status().json()["answers"] for each in (served, service)
        ]
        texts = [list(map(itemgetter("raw_text"), answer)) for answer in answers]
        assert texts[0] == texts[1]
        assert metric(served, "diptych_batch_size_count", model=MODEL, stage="encode") == 1


def test_bentoml_build_makes_the_dockerfile_of_containerize(
    exported: ModelStore, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(exported.home, tmp_path / "bentoml"))
    environment = service_environment(home)
    subprocess.run(
        [sys.executable, "-m", "bentoml", "build"],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=120,
    )
    (dockerfile,) = home.glob("bentos/diptych/*/env/docker/Dockerfile")
    text = dockerfile.read_text(encoding="utf-8")
    assert "requirements.txt" in text or "install.sh" in text
    assert (dockerfile.parents[2] / "src" / "service" / "gateway.py").is_file()


@pytest.mark.long
@pytest.mark.parametrize(
    ("starter", "processes", "part"),
    [
        ("bentoml serve", "several", "florence-2-mini-runner"),
        ("python -m service", "several", "florence-2-mini-runner"),
        ("python -m service", "one", "diptych"),
    ],
)
@pytest.mark.parametrize("models", [MODEL, f"{MODEL},paligemma-mini"])
def test_a_killed_model_comes_back(
    exported: ModelStore, tmp_path: Path, starter: str, processes: str, part: str, models: str
) -> None:
    """Measures why service/supervision exists, and what a process for each model takes.

    pytest -s -m long tests/system/test_bentoml.py
    """
    port = str(free_port())
    serve = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    command = serve if starter == "bentoml serve" else SERVICE
    settings = {
        "DIPTYCH_PORT": port,
        "DIPTYCH_PROCESSES": processes,
        "DIPTYCH_MODELS": models,
    }
    start_s = time.monotonic()
    log = tmp_path / "service.log"
    with running_service(exported.home, log, OPEN, command, **settings) as service:
        ready_s = time.monotonic() - start_s
        answer_of(service).raise_for_status()
        memory_mb = sum(use.memory_mb for use in use_by_name(service.process.pid).values())
        (killed,) = [pid for pid in descendants(service.process.pid) if is_part(pid, part)]
        os.kill(killed, signal.SIGKILL)
        start_s = time.monotonic()
        while not is_answered(service):
            assert time.monotonic() - start_s < 60
        back_s = time.monotonic() - start_s
    print(
        f"\n{starter}, {models}, processes: {processes}: ready after {ready_s:.1f} s,"
        f" {memory_mb:.0f} MB; back {back_s:.1f} s after kill -9"
    )


def is_answered(service: RunningService) -> bool:
    try:
        return "error" not in answer_of(service).json()["answers"][0]
    except httpx.TransportError:
        return False


def is_part(pid: int, name: str) -> bool:
    """Return True if the process is that of a BentoML service."""
    *_, after = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"--service-name")
    return after.replace(b"\0", b" ").split()[:1] == [name.encode()]
