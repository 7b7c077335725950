"""The command `diptych`, against the running service."""

import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from tests.support.client_command import command, run
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image, scene_png
from tests.support.service_metrics import metric

NUM_IMAGES = 60


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `NUM_IMAGES` small scenes, some of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(NUM_IMAGES):
        scene_image(index, (96, 64)).save(
            folder / ("more" if index % 3 else "") / f"{index:03}.png"
        )
    return folder


def journal_names(out: Path) -> list[str]:
    """Return the image name of every complete record of the journal."""
    whole, _, _ = (out / "journal.jsonl").read_bytes().rpartition(b"\n")
    return [json.loads(line)["image"]["name"] for line in whole.split(b"\n")[1:]]


def test_predict_prints_a_table_and_draws_the_boxes(
    service: RunningService, scene: Path, tmp_path: Path
) -> None:
    shown = run(
        service, "predict", scene, "--task", "object_detection", "--draw", tmp_path / "drawn.png"
    )
    assert shown.returncode == 0, shown.stderr
    assert "florence-2-mini" in shown.stdout
    printed = json.loads(
        run(service, "predict", scene, "--task", "object_detection", "--json").stdout
    )
    for detection in printed["result"]["detections"]:
        assert detection["label"] in shown.stdout
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width == 320
        assert drawn.height > 240


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGINT]
)
def test_an_interrupted_run_is_resumed_without_labelling_an_image_twice(
    service: RunningService, folder: Path, stop: signal.Signals
) -> None:
    out = folder.with_name("out")
    concurrency = 1  # it is interrupted well before its end
    words = (
        "annotate",
        folder,
        "--task",
        "object_detection",
        "--out",
        out,
        "--concurrency",
        str(concurrency),
    )
    before = num_requests(service)
    options: dict[str, Any] = {"stderr": subprocess.DEVNULL, "preexec_fn": enable_sigint}
    with subprocess.Popen(command(service, *words), **options) as process:
        wait_for_answers(process, out, 10)
        process.send_signal(stop)
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop]
    assert 10 <= len(journal_names(out)) < NUM_IMAGES
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"image": {"name": "torn')
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert sorted(journal_names(out)) == names
    assert NUM_IMAGES <= num_requests(service) - before <= NUM_IMAGES + concurrency
    assert (
        sorted(image["file_name"] for image in COCO(out / "annotations.json").imgs.values())
        == names
    )


def enable_sigint() -> None:
    """Restore SIGINT in a process whose tests run in the background of a shell, which ignores
    it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def num_requests(service: RunningService) -> float:
    """Return the number of answered requests of the task."""
    return metric(service, "diptych_requests_total", api="rest", task="object_detection")


def wait_for_answers(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Wait until the journal has `count` answers."""
    while not (out / "journal.jsonl").exists() or len(journal_names(out)) < count:
        assert process.poll() is None
        time.sleep(0.01)


def test_yolo_has_a_label_file_for_every_image(
    service: RunningService, folder: Path, tmp_path: Path
) -> None:
    words = (
        "annotate",
        folder,
        "--task",
        "object_detection",
        "--format",
        "yolo",
        "--out",
        tmp_path / "yolo",
    )
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    dataset = yaml.safe_load((tmp_path / "yolo" / "dataset.yaml").read_text())
    images = Path(dataset["path"]) / dataset["train"]
    lines = []
    for image in images.rglob("*.png"):
        # trainers find labels like this
        labels = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        lines += [line.split() for line in labels.read_text().splitlines()]
    assert len(list(images.rglob("*.png"))) == NUM_IMAGES
    assert {dataset["names"][int(name)] for name, *_ in lines} == {
        "circle",
        "square",
        "star",
        "triangle",
    }
    for _, *box in lines:
        assert len(box) == 4
        assert all(0 <= float(number) <= 1 for number in box)


def test_failed_images_are_listed_and_retried_by_the_next_run(
    service: RunningService, folder: Path
) -> None:
    out = folder.with_name("out")
    (folder / "broken.png").write_bytes(b"no image")
    words = ("annotate", folder, "--task", "ocr", "--format", "jsonl", "--out", out)
    failed = run(service, *words)
    assert failed.returncode == 1
    assert "1 failed, see" in failed.stderr
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert (json.loads(line)["image"], json.loads(line)["code"]) == (
        "broken.png",
        "unreadable_file",
    )
    assert len((out / "answers.jsonl").read_text().splitlines()) == NUM_IMAGES
    (folder / "broken.png").write_bytes(scene_png())
    again = run(service, *words)
    assert again.returncode == 0, again.stderr
    assert "1 images in" in again.stderr
    assert (out / "failures.jsonl").read_text() == ""
    assert Counter(journal_names(out)).most_common(1)[0][1] == 1
    assert len((out / "answers.jsonl").read_text().splitlines()) == NUM_IMAGES + 1
