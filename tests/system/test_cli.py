"""The command `diptych`, against the running service."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from export.scenes import SHAPES, render_scene
from laboratory.scenes import evaluation_scene, png
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
    """Return the image name of every complete record of the journal."""
    file = out / "journal.jsonl"
    whole, _, _ = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
    return [json.loads(line)["image"] for line in whole.splitlines()]


def num_requests(service: RunningService) -> float:
    """Return the number of answered requests of the task."""
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


@pytest.mark.long
def test_killed_evaluation_is_resumed(service: RunningService, folder: Path) -> None:
    out = folder.with_name("out")
    log = out / "answers.jsonl"
    words = ("evaluate", folder, *DETECT, "--models", "florence-2-mini", "--out", out)
    before = num_requests(service)
    with subprocess.Popen(command(service, *words), stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") > NUM_IMAGES // 4)
        process.kill()
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    assert log.read_bytes().count(b"\n") == NUM_IMAGES
    assert num_requests(service) - before <= NUM_IMAGES + 8  # in flight
    assert "have an answer already" in finished.stderr
    assert json.loads((out / "report.json").read_text())["num_images"] == NUM_IMAGES


def test_stricter_consensus_needs_no_answers(service: RunningService, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        image = png(render_scene(evaluation_scene(index), 22))
        (images / f"{index}.png").write_bytes(image)
    out = tmp_path / "out"
    words: list[str | Path] = ["annotate", images, "--task", "open_vocabulary_detection"]
    words += ["--consensus", "--out", out, "--labels", ",".join(SHAPES)]

    def accepted(*options: str) -> list[Any]:
        finished = run(service, *words, *options)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("6 of 6 requests have an answer") == (2 if options else 0)
        rows: list[Any] = json.loads((out / "annotations.json").read_text())["annotations"]
        return rows

    num_accepted = len(accepted())
    review = json.loads((out / "review.json").read_text())
    assert all(row["review"] for row in review["annotations"])
    tasks = json.loads((out / "label_studio.json").read_text())
    assert len(tasks) == len(review["images"])
    certain = accepted("--accept-score", "0.9")
    assert 0 < len(certain) < num_accepted
    assert all(row["score"] >= 0.9 for row in certain)
