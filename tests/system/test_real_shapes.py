"""Random weights in the true widths of Florence-2-base and PaliGemma 2, few layers, exported and
served together.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService, running_service, service_environment
from tests.support.scene_images import scene_png

pytestmark = pytest.mark.long
IMAGE_TOKENS = {"florence-2-base": 577, "paligemma-2-3b-mix-224": 256}


@pytest.fixture(scope="module")
def real_shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("shapes")
    for name in IMAGE_TOKENS:
        export_into_store(folder, name)
    with running_service(
        folder / "bentoml", folder / "service.log", DIPTYCH_MODELS=",".join(IMAGE_TOKENS)
    ) as service:
        yield service


def export_into_store(folder: Path, name: str) -> None:
    command = [sys.executable, "-m", "tests.support.export_random", name, str(folder / name)]
    environment = service_environment(folder / "bentoml")
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert run.returncode == 0, run.stderr


def ask(service: RunningService, seed: int) -> httpx.Response:
    form = {"task": "captioning", "max_new_tokens": "8"}
    return httpx.post(
        f"{service.url}/v1/compare", data=form, files={"image": scene_png(seed)}, timeout=90
    )


def test_models_of_real_widths_answer_side_by_side(real_shapes: RunningService) -> None:
    answers = ask(real_shapes, 1).raise_for_status().json()["answers"]
    assert {answer["model"]: answer["usage"]["image_tokens"] for answer in answers} == IMAGE_TOKENS
    assert all(answer["usage"]["generated_tokens"] == 8 for answer in answers)
    again = ask(real_shapes, 1).raise_for_status().json()["answers"]
    assert [answer["raw_text"] for answer in again] == [answer["raw_text"] for answer in answers]
