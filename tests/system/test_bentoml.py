"""BentoML as its users know it: the service runs under `bentoml serve`, and its Bento has BentoML's
own Dockerfile.
"""

import shutil
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import httpx
import pytest

from tests.support.export_cli import ROOT, ModelStore
from tests.support.running_service import (
    OPEN,
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
