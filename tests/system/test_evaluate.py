"""The command `diptych evaluate` against the running service."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from export.scenes import render_scene
from laboratory.evaluation import evaluation_scene
from tests.support.client_command import command, run
from tests.support.running_service import RunningService
from tests.support.service_metrics import metric

TASK = "open_vocabulary_detection"
NUM_IMAGES = 40


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(NUM_IMAGES):
        render_scene(evaluation_scene(index), 96).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Captions of the scenes as JSON lines, one of an image that does not exist."""
    lines = [
        json.dumps({"image": f"{index:02}.png", "caption": "a red circle"}) for index in range(4)
    ]
    (tmp_path / "captions.jsonl").write_text(
        "\n".join([*lines, json.dumps({"image": "none.png", "caption": "x"})])
    )
    return tmp_path / "captions.jsonl"


def num_requests(service: RunningService) -> float:
    return metric(service, "diptych_requests_total", api="rest", task=TASK)


def num_answers(out: Path) -> int:
    log = out / "answers.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.long
def test_a_killed_evaluation_is_resumed_without_asking_twice(
    service: RunningService, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    concurrency = 2
    labels = ("--labels", "circle", "--labels", "star")
    words = (
        "evaluate",
        scenes,
        "--task",
        TASK,
        *labels,
        "--out",
        out,
        "--concurrency",
        str(concurrency),
    )
    before = num_requests(service)
    with subprocess.Popen(command(service, *words), stderr=subprocess.DEVNULL) as process:
        while num_answers(out) < NUM_IMAGES // 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert num_answers(out) < 2 * NUM_IMAGES
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    assert num_answers(out) == 2 * NUM_IMAGES
    assert 2 * NUM_IMAGES <= num_requests(service) - before <= 2 * NUM_IMAGES + concurrency
    assert "florence-2-mini and paligemma-mini: agreement" in finished.stdout
    assert "were answered in an earlier run" in finished.stderr
    assert json.loads((out / "report.json").read_text())["num_images"] == NUM_IMAGES
