"""The command `diptych`, against the running service."""

import json
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from export.scenes import SHAPES
from laboratory.evaluation import CONDITIONS, evaluation_scene
from tests.support.client_command import command, run
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image, scene_png
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
    return [json.loads(line)["image"]["name"] for line in whole.split(b"\n")[1:]]


def num_requests(service: RunningService) -> float:
    """Return the number of answered requests of the task."""
    return metric(service, "diptych_requests_total", api="rest", task="object_detection")


def test_predict_prints_a_table_and_draws(service: RunningService, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    scene.write_bytes(scene_png())
    table = run(service, "predict", scene, *DETECT, "--draw", tmp_path / "drawn.png")
    assert table.returncode == 0, table.stderr
    assert "florence-2-mini" in table.stdout
    answer = json.loads(run(service, "predict", scene, *DETECT, "--json").stdout)
    for detection in answer["result"]["detections"]:
        assert detection["label"] in table.stdout
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width == 320
        assert drawn.height > 240


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
        journal.write(b'{"image": {"name": "torn')
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
    assert "were answered in an earlier run" in finished.stderr
    assert json.loads((out / "report.json").read_text())["num_images"] == NUM_IMAGES


def test_yolo_has_a_label_file_for_every_image(service: RunningService, folder: Path) -> None:
    out = folder.with_name("yolo")
    finished = run(service, "annotate", folder, *DETECT, "--format", "yolo", "--out", out)
    assert finished.returncode == 0, finished.stderr
    dataset = yaml.safe_load((out / "dataset.yaml").read_text())
    images = list((Path(dataset["path"]) / dataset["train"]).rglob("*.png"))
    assert len(images) == NUM_IMAGES
    names = set()
    for image in images:
        # trainers find labels like this
        labels = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        for line in labels.read_text().splitlines():
            name, *box = line.split()
            names.add(dataset["names"][int(name)])
            assert len(box) == 4
            assert all(0 <= float(number) <= 1 for number in box)
    assert names == set(SHAPES)


def test_failed_images_are_retried(service: RunningService, folder: Path) -> None:
    out = folder.with_name("out")
    (folder / "broken.png").write_bytes(b"no image")
    words = ("annotate", folder, "--task", "ocr", "--format", "jsonl", "--out", out)
    failed = run(service, *words)
    assert failed.returncode == 1
    assert "1 failed, see" in failed.stderr
    failure = json.loads((out / "failures.jsonl").read_text())
    assert (failure["image"], failure["code"]) == ("broken.png", "unreadable_file")
    (folder / "broken.png").write_bytes(scene_png())
    again = run(service, *words)
    assert again.returncode == 0, again.stderr
    assert "1 images in" in again.stderr
    assert (out / "failures.jsonl").read_text() == ""
    assert set(Counter(journal_names(out)).values()) == {1}
    assert len((out / "answers.jsonl").read_text().splitlines()) == NUM_IMAGES + 1


def test_folder_is_labelled_by_consensus(service: RunningService, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        image = CONDITIONS["22px"](evaluation_scene(index)).data
        (images / f"{index}.png").write_bytes(image)
    out = tmp_path / "out"
    words: list[str | Path] = ["annotate", images, "--task", "open_vocabulary_detection"]
    words += ["--consensus", "--out", out]
    for shape in SHAPES:
        words += ["--labels", shape]
    first = run(service, *words)
    again = run(service, *words)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert "6 of 6 images are in" in first.stdout
    assert first.stderr.count("\n6 images in") == 2  # of each model
    assert "images in" not in again.stderr
    names = ("annotations", "review", "label_studio")
    accepted, review, tasks = (json.loads((out / f"{name}.json").read_text()) for name in names)
    for row in review["annotations"]:
        assert row["review"]
        assert row["model"].endswith("-mini")
    assert len(tasks) == len(review["images"])
    stricter = run(service, *words, "--accept-score", "0.9")
    assert "images in" not in stricter.stderr
    certain = json.loads((out / "annotations.json").read_text())["annotations"]
    assert 0 < len(certain) < len(accepted["annotations"])
    assert all(row["score"] >= 0.9 for row in certain)
