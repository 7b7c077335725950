"""BentoML as its users know it: the service runs under `bentoml serve`, and its Bento has BentoML's
own Dockerfile.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT, ModelStore, environment_with
from tests.support.running_service import (
    OPEN,
    RunningService,
    free_port,
    running_service,
)
from tests.support.service_metrics import metric

MODEL = "florence-2-mini"


@pytest.mark.long
def test_bentoml_serve_has_equal_answers(
    exported: ModelStore, service: RunningService, tmp_path: Path
) -> None:
    port = str(free_port())
    command = (sys.executable, "-m", "bentoml", "serve", "service.gateway:Gateway", "--port", port)
    settings = {"DIPTYCH_PORT": port, "DIPTYCH_MODELS": MODEL}
    log = tmp_path / "bentoml.log"
    with running_service(exported.home, log, OPEN, command, **settings) as served:
        first, second = (
            running.predict(task="captioning", model=MODEL).json()["raw_text"]
            for running in (served, service)
        )
        assert first == second
        assert metric(served, "diptych_batch_size_count", model=MODEL, stage="encode") == 1


def test_bentoml_build_makes_a_dockerfile(exported: ModelStore, tmp_path: Path) -> None:
    home = Path(shutil.copytree(exported.home, tmp_path / "bentoml"))
    command = [sys.executable, "-m", "bentoml", "build"]
    subprocess.run(command, cwd=ROOT, env=environment_with(home), check=True, timeout=120)
    (dockerfile,) = home.glob("bentos/diptych/*/env/docker/Dockerfile")
    text = dockerfile.read_text(encoding="utf-8")
    assert "requirements.txt" in text or "install.sh" in text
    assert (dockerfile.parents[2] / "src" / "service" / "gateway.py").is_file()
