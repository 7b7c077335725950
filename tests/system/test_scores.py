"""Scores of the running service: calibrated, filtered and suppressed alike over REST and gRPC;
labels by consensus.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from diptych_client import (
    Answer,
    AnswerOptions,
    Client,
    DetectionsResult,
    TaskParameters,
)
from diptych_client.matching import pairwise_iou
from export.scenes import SHAPES
from laboratory.evaluation import CONDITIONS, evaluation_scene
from tests.support.client_command import run
from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, free_port

TASK = "open_vocabulary_detection"
LABELS = TaskParameters(labels=SHAPES)
IMAGE = CONDITIONS["40px"](evaluation_scene(3)).data


@pytest.fixture(params=["rest", "grpc"])
def client(request: pytest.FixtureRequest, service: RunningService) -> Iterator[Client]:
    with Client(
        service.url if request.param == "rest" else f"grpc://{service.grpc_address}"
    ) as client:
        yield client


def answers(client: Client, options: AnswerOptions) -> list[Answer]:
    answers = client.compare(IMAGE, TASK, LABELS, options=options).answers
    assert all(isinstance(answer, Answer) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Answer)]


def scores(answer: Answer) -> list[float]:
    assert isinstance(answer.result, DetectionsResult)
    return [detection.score for detection in answer.result.detections]


def test_both_embedded_models_answer_with_calibrated_scores_and_list_their_tasks(
    client: Client,
) -> None:
    for options in (AnswerOptions(), AnswerOptions(tiles=4)):
        assert [answer.calibrated for answer in answers(client, options)] == [True, True]
    assert [answer.calibrated for answer in answers(client, AnswerOptions(temperature=0.5))] == [
        False,
        False,
    ]
    assert all(
        TASK in model.calibrated_tasks and len(model.checkpoint) == 64 for model in client.models()
    )
    assert not client.predict(IMAGE, "captioning").calibrated


def test_the_minimum_score_is_of_the_returned_scores(client: Client) -> None:
    for plain in answers(client, AnswerOptions()):
        assert scores(plain)
        for minimum in (0.0, *scores(plain), 1.0):
            filtered = client.predict(
                IMAGE, TASK, LABELS, model=plain.model, options=AnswerOptions(min_score=minimum)
            )
            assert scores(filtered) == [score for score in scores(plain) if score >= minimum]


def test_suppressed_boxes_do_not_overlap(client: Client) -> None:
    for answer in answers(client, AnswerOptions(nms_iou=0.0)):
        assert isinstance(answer.result, DetectionsResult)
        by_label = defaultdict(list)
        for detection in answer.result.detections:
            by_label[detection.label].append(detection.box_xyxy)
        assert by_label
        for boxes in by_label.values():
            assert np.count_nonzero(pairwise_iou(boxes, boxes)) == len(boxes)


@pytest.mark.parametrize("processes", ["several", "one"])
def test_a_calibration_of_another_checkpoint_prevents_the_start(
    exported: ModelStore, tmp_path: Path, processes: str
) -> None:
    row = {
        "model": "florence-2-mini",
        "checkpoint": "0" * 64,
        "task": TASK,
        "scores": [0],
        "probabilities": [1],
    }
    (tmp_path / "old.json").write_text(json.dumps({"calibrations": [row]}))
    settings = {
        "DIPTYCH_CALIBRATION": str(tmp_path / "old.json"),
        "DIPTYCH_PROCESSES": processes,
        "DIPTYCH_PORT": str(free_port()),
        "DIPTYCH_GRPC_PORT": "0",
    }
    started = exported.forked("-m", "service.supervision.supervisor", **settings)
    assert started.returncode == 1
    assert (
        "diptych does not start: DIPTYCH_CALIBRATION: the calibration of florence-2-mini"
        in started.stderr
    )


def test_a_folder_is_labelled_by_consensus_and_resumed(
    service: RunningService, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for index in range(6):
        (tmp_path / "images" / f"{index}.png").write_bytes(
            CONDITIONS["22px"](evaluation_scene(index)).data
        )
    labels = list(chain.from_iterable(("--labels", shape) for shape in SHAPES))
    words = (
        "annotate",
        tmp_path / "images",
        "--task",
        TASK,
        "--consensus",
        "--out",
        tmp_path / "out",
    )
    first = run(service, *words, *labels)
    again = run(service, *words, *labels)
    num_accepted = len(
        json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    )
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert "6 of 6 images are in" in first.stdout
    assert (first.stderr.count("\n6 images in"), "images in" in again.stderr) == (2, False)
    accepted, review = (
        json.loads((tmp_path / "out" / f"{n}.json").read_text()) for n in ("annotations", "review")
    )
    assert accepted["annotations"]
    assert all(row["review"] and row["model"].endswith("-mini") for row in review["annotations"])
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert len(tasks) == len(review["images"])
    stricter = run(service, *words, *labels, "--accept-score", "0.9")
    assert "images in" not in stricter.stderr
    certain = json.loads((tmp_path / "out" / "annotations.json").read_text())["annotations"]
    assert 0 < len(certain) < num_accepted
    assert all(row["score"] >= 0.9 for row in certain)
