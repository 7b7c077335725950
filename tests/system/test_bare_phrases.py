"""Phrases without an article ("triangle", "blue square") find their objects, at five sizes and
aspect ratios.

So do all names of a scene at once.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import httpx
import pytest

from diptych_client.matching import LabelledBox
from export.scenes import Scene, box_xyxy, render_scene
from laboratory.evaluation import encoded, evaluation_scene, predict
from laboratory.questions import DetectionsTruth, Question
from laboratory.scoring import match_boxes
from tests.support.running_service import RunningService

MODELS = ("florence-2-mini", "paligemma-mini")
NUM_SCENES = 40
NUM_CLIENTS = 4
SIZES_WH = ((192, 192), (640, 480), (300, 500), (1000, 400), (1280, 720))
PARAMETERS = {"phrase_grounding": "phrases", "open_vocabulary_detection": "labels"}
BAR = 0.95


def bare_phrase(scene: Scene) -> str:
    """Return a shape or a coloured shape of the scene, as its seed decides."""
    drawn = scene.objects[scene.seed // 2 % len(scene.objects)]
    return drawn.name if scene.seed % 2 else drawn.shape


def scenes(num: int) -> Iterator[Scene]:
    """Yield scenes with objects."""
    found = (scene for index in range(2 * num) if (scene := evaluation_scene(index)).objects)
    yield from (scene for scene, _ in zip(found, range(num), strict=False))


def bare_questions(scene: Scene, task: str) -> Iterator[Question]:
    """Yield a question with one phrase and one with the phrases of all objects."""
    for name, phrases in (
        ("one", [bare_phrase(scene)]),
        ("all", list(dict.fromkeys(o.name for o in scene.objects))),
    ):
        boxes = (
            LabelledBox(p, box_xyxy(o))
            for p, o in product(phrases, scene.objects)
            if p in (o.shape, o.name)
        )
        yield Question(name, task, {PARAMETERS[task]: phrases}, DetectionsTruth(tuple(boxes)))


def right_answers(
    client: httpx.Client, model: str, scene: Scene, task: str, is_constrained: bool
) -> dict[str, bool]:
    """Return by question whether exactly the true boxes were found, each with its phrase as
    label.
    """
    image = encoded(render_scene(scene, 384).resize(SIZES_WH[scene.seed % len(SIZES_WH)]))
    right = {}
    for question in (each.scaled(image.size_wh) for each in bare_questions(scene, task)):
        response = predict(client, model, question, image, is_constrained)
        assert response is not None
        assert isinstance(question.truth, DetectionsTruth)
        tally = match_boxes(response.json()["result"]["detections"], question.truth.boxes, 0.5)
        right[question.name] = tally.num_right == tally.num_answered == tally.num_expected
    return right


def shares_right(
    client: httpx.Client, model: str, task: str, is_constrained: bool
) -> dict[str, float]:
    """Return the share of right answers by question."""
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        rows = list(
            pool.map(
                lambda s: right_answers(client, model, s, task, is_constrained), scenes(NUM_SCENES)
            )
        )
    means: dict[str, float] = {}
    for name in rows[0]:
        means[name] = sum(row[name] for row in rows) / len(rows)
    return means


@pytest.mark.parametrize(
    "task", ["phrase_grounding", pytest.param("open_vocabulary_detection", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("model", MODELS)
def test_phrases_without_an_article_find_their_objects(
    service: RunningService, model: str, task: str
) -> None:
    with service.client() as client:
        shares = shares_right(client, model, task, is_constrained=True)
    assert min(shares.values()) >= BAR, shares
