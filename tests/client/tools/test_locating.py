"""The check that boxes land where they should: what an engine does to boxes is named."""

from collections.abc import Callable, Sequence

import pytest
from numpy.random import default_rng

from diptych_client import Answer, Detection, DetectionsResult
from diptych_client.geometry import BoxXyxy
from diptych_client.tools.locating import LABELS, DrawnScene, drawn_scenes, located
from tests.support.client_answers import answer

Fault = Callable[[float, float, int, int], tuple[float, float]]  # of a point, width and height
# The words that name what an engine does to the points of boxes.
FAULTS: dict[str, Fault] = {
    "right within": lambda x, y, _width, _height: (x, y),
    "x and y are swapped": lambda x, y, w, h: (y * w / h, x * h / w),
    "pads images to squares, around": lambda x, y, w, h: (
        (x + (max(w, h) - w) / 2) * w / max(w, h),
        (y + (max(w, h) - h) / 2) * h / max(w, h),
    ),
    "pads images to squares, right": lambda x, y, w, h: (x * w / max(w, h), y * h / max(w, h)),
    "times as far": lambda x, y, _width, _height: (0.7 * x, 0.7 * y),
    "in pixels of images resized to": lambda x, y, w, h: (x * 448 / w, y * 448 / h),
    "moved by 0.04 of the height": lambda x, y, _width, h: (x, y + 0.04 * h),
}
NOISE = 0.004  # of a model's corners, share of the side
NUM_WRONG = 4  # answers of 60 whose boxes are elsewhere


def detections_in(boxes: Sequence[BoxXyxy]) -> Answer:
    pairs = zip(boxes, LABELS, strict=True)
    return answer(DetectionsResult(tuple(Detection(box, label) for box, label in pairs)))


@pytest.mark.parametrize("words", FAULTS)
def test_misplaced_boxes_are_named(words: str) -> None:
    rng = default_rng(1)
    scenes = list(drawn_scenes(60))

    def misplaced(scene: DrawnScene, label: str) -> BoxXyxy:
        width, height = scene.image.size
        noise = rng.normal(0, NOISE, 4)
        x1, y1, x2, y2 = scene.boxes[label]
        x1, y1 = FAULTS[words](x1 + noise[0] * width, y1 + noise[1] * height, width, height)
        x2, y2 = FAULTS[words](x2 + noise[2] * width, y2 + noise[3] * height, width, height)
        return (x1, y1, min(x2, width), min(y2, height))

    answers = []
    for number, scene in enumerate(scenes):
        seen = scenes[number - 5] if number < NUM_WRONG else scene  # of the same size
        answers.append(detections_in([misplaced(seen, label) for label in LABELS]))
    location = located(scenes, answers)
    assert words in str(location)
    assert bool(location.problem) == (words != "right within")


@pytest.mark.parametrize(("shares", "problem"), [((0, 1), "too few"), ((0.1, 0.4), "are moved by")])
def test_same_boxes_everywhere(shares: tuple[float, float], problem: str) -> None:
    scenes = list(drawn_scenes(50))
    answers = []
    for scene in scenes:
        width, height = scene.image.size
        low, high = shares
        box = (low * width, low * height, high * width, high * height)
        answers.append(detections_in([box] * len(LABELS)))
    assert problem in located(scenes, answers).problem
    assert located(scenes, 50 * [ValueError("no engine")]).problem == "no engine"
