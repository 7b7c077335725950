"""The command `diptych`, against the running service."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from tests.support.client_command import command, run
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

NUM_IMAGES = 60
DETECT = ("--task", "object_detection")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `NUM_IMAGES` small scenes, some of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(NUM_IMAGES):
        path = folder / ("more" if index % 3 else "") / f"{index:03}.png"
        scene_image(index, (96, 64)).save(path)
    return folder


def journal_names(out: Path) -> list[str]:
    file = out / "journal.jsonl"
    whole, _, _ = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
    return [json.loads(line)["image"] for line in whole.splitlines()]


def num_requests(service: RunningService) -> float:
    return metric(service, "diptych_requests_total", api="rest", task="object_detection")


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGINT]
)
def test_interrupted_run_is_resumed(
    service: RunningService, folder: Path, stop: signal.Signals
) -> None:
    out = folder.with_name("out")
    words = ("annotate", folder, *DETECT, "--out", out, "--concurrency", "1")
    before = num_requests(service)
    # a shell's background processes ignore SIGINT
    options: dict[str, Any] = {"preexec_fn": enable_sigint, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(service, *words), **options) as process:
        wait_until(lambda: len(journal_names(out)) >= 10 or process.poll() is not None)
        process.send_signal(stop)
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop]
    assert 10 <= len(journal_names(out)) < NUM_IMAGES
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"key": "torn')
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert sorted(journal_names(out)) == names
    assert NUM_IMAGES <= num_requests(service) - before <= NUM_IMAGES + 1
    images = COCO(out / "annotations.json").imgs.values()
    assert sorted(image["file_name"] for image in images) == names


def enable_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
