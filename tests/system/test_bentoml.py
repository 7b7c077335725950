"""BentoML as its users know it: the service runs under `bentoml serve`, and its Bento has BentoML's own Dockerfile."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.export_cli import ROOT, ModelStore
from tests.support.running_service import OPEN, RunningService, free_port, running_service, service_environment
from tests.support.scene_images import scene_png


def answer_of(service: RunningService) -> httpx.Response:
    form = {"task": "captioning", "models": ["florence-2-mini", "paligemma-mini"]}
    return httpx.post(f"{service.url}/v1/compare", data=form, files={"image": scene_png()}, timeout=60)


def test_bentoml_serve_gives_the_answers_of_the_supervisor(
    exported: ModelStore, service: RunningService, tmp_path: Path
) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    with running_service(exported.home, tmp_path / "bentoml.log", OPEN, command, DIPTYCH_PORT=port) as served:
        answers = [answer_of(each).raise_for_status().json()["answers"] for each in (served, service)]
        texts = [[each["raw_text"] for each in answer] for answer in answers]
        assert texts[0] == texts[1]
        assert (
            'diptych_batch_size_count{model="florence-2-mini",stage="encode"} 1' in served.client().get("/metrics").text
        )


def test_bentoml_build_makes_the_dockerfile_of_containerize(exported: ModelStore, tmp_path: Path) -> None:
    home = Path(shutil.copytree(exported.home, tmp_path / "bentoml"))
    environment = service_environment(home)
    subprocess.run([sys.executable, "-m", "bentoml", "build"], cwd=ROOT, env=environment, check=True, timeout=120)
    (dockerfile,) = home.glob("bentos/diptych/*/env/docker/Dockerfile")
    text = dockerfile.read_text(encoding="utf-8")
    assert "requirements.txt" in text or "install.sh" in text
    assert (dockerfile.parents[2] / "src" / "service" / "gateway.py").is_file()
