"""Scores of the running service: calibrated, filtered and suppressed alike over REST and gRPC."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diptych_client import AnswerOptions, Client, TaskParameters
from diptych_client.matching import pairwise_iou
from export.scenes import SHAPES
from laboratory.evaluation import CONDITIONS, evaluation_scene
from tests.support.running_service import RunningService

TASK = "open_vocabulary_detection"
LABELS = TaskParameters(labels=SHAPES)
IMAGE = CONDITIONS["40px"](evaluation_scene(3)).data


@pytest.fixture(params=["rest", "grpc"])
def client(request: pytest.FixtureRequest, service: RunningService) -> Iterator[Client]:
    url = service.url if request.param == "rest" else f"grpc://{service.grpc_address}"
    with Client(url) as client:
        yield client


def answers(client: Client, **options: Any) -> list[Any]:
    """Return the answers of both models."""
    comparison = client.compare(IMAGE, TASK, LABELS, options=AnswerOptions(**options))
    assert len(comparison.answers) == 2
    return list(comparison.answers)


def scores(answer: Any) -> list[float]:
    return [detection.score for detection in answer.result.detections]


def test_embedded_models_are_calibrated(client: Client) -> None:
    assert all(answer.calibrated for answer in answers(client))
    assert all(answer.calibrated for answer in answers(client, tiles=4))
    assert not any(answer.calibrated for answer in answers(client, temperature=0.5))
    for model in client.models():
        assert TASK in model.calibrated_tasks
        assert len(model.checkpoint) == 64
    assert not client.predict(IMAGE, "captioning").calibrated


def test_minimum_applies_to_the_returned_scores(client: Client) -> None:
    for plain in answers(client):
        assert scores(plain)
        for minimum in (0.0, *scores(plain), 1.0):
            options = AnswerOptions(min_score=minimum)
            filtered = client.predict(IMAGE, TASK, LABELS, model=plain.model, options=options)
            assert scores(filtered) == [score for score in scores(plain) if score >= minimum]


def test_suppressed_boxes_do_not_overlap(client: Client) -> None:
    for answer in answers(client, nms_iou=0.0):
        by_label = defaultdict(list)
        for detection in answer.result.detections:
            by_label[detection.label].append(detection.box_xyxy)
        assert by_label
        for boxes in by_label.values():
            assert np.count_nonzero(pairwise_iou(boxes, boxes)) == len(boxes)
