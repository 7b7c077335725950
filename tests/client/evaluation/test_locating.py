"""The check that boxes land where they should, on answers that tell nothing."""

import pytest

from diptych_client import Detection, DetectionsResult
from diptych_client.evaluation.locating import LABELS, drawn_scenes, located
from tests.support.client_answers import answer


@pytest.mark.parametrize(("shares", "problem"), [((0, 1), "too few"), ((0.1, 0.4), "are moved by")])
def test_same_boxes_everywhere(shares: tuple[float, float], problem: str) -> None:
    scenes = list(drawn_scenes(50))
    answers = []
    for scene in scenes:
        width, height = scene.image.size
        low, high = shares
        box = (low * width, low * height, high * width, high * height)
        answers.append(answer(DetectionsResult(tuple(Detection(box, name) for name in LABELS))))
    assert problem in located(scenes, answers).problem
    assert located(scenes, 50 * [ValueError("no engine")]).problem == "no engine"
