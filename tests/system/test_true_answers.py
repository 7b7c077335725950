"""Tasks of both embedded models, over REST, against the truth of rendered scenes of several sizes
and shapes. The bars are what the checkpoints are meant to reach.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from diptych_client import (
    AnswerOptions,
    Client,
    DetectionsResult,
    ImageSize,
    InstancesResult,
    TextRegionsResult,
    TextResult,
    UnsupportedTask,
)
from diptych_client.geometry import corners
from diptych_client.image_sources import scaled_result
from diptych_client.results import (
    Detection,
    Instance,
    Result,
    TextRegion,
)
from diptych_client.tools.matching import LabelledBox, match
from export.scenes import CANVAS_PX, Scene, box_xyxy, outline_xy, render_scene
from laboratory.bench.material import with_article
from laboratory.scenes import evaluation_scene, png
from tests.support.running_service import RunningService

NUM_SCENES = 24
NUM_CLIENTS = 4
SIZES_WH = ((192, 192), (640, 480), (300, 500), (1000, 400))
UNCONSTRAINED = AnswerOptions(constrained=False)
CANVAS = ImageSize(CANVAS_PX, CANVAS_PX)
# The lowest mean score of a task: text is right or wrong, boxes have an F1, masks an IoU.
BARS: dict[str, dict[type[Result], float]] = {
    "florence-2-mini": {
        TextResult: 0.9,
        TextRegionsResult: 0.9,
        DetectionsResult: 0.97,
        InstancesResult: 0.9,
    },
    "paligemma-mini": {TextResult: 0.85, DetectionsResult: 0.92, InstancesResult: 0.85},
}

Truth = tuple[str, dict[str, Any], Result]  # task, parameters, right answer


def truths(scene: Scene) -> Iterator[Truth]:
    """Yield questions whose answers the scene decides, in pixels of its canvas."""
    word = scene.word
    text = word.text if word else ""
    yield "ocr", {}, TextResult(text)
    regions = (TextRegion(corners(word.box_xyxy), text, 1.0),) if word else ()
    yield "ocr_with_regions", {}, TextRegionsResult(regions)
    names = [drawn.name for drawn in scene.objects]
    phrases = [with_article(name) for name in names]
    yield "object_detection", {}, boxes(scene, [drawn.shape for drawn in scene.objects])
    descriptions = [drawn.description for drawn in scene.objects]
    yield "dense_region_captioning", {}, boxes(scene, descriptions)
    yield "region_proposal", {}, boxes(scene, [""] * len(names))
    count = {"question": "how many shapes are there?"}
    yield "visual_question_answering", count, TextResult(str(len(names)))
    if len(set(names)) < len(names) or not names:
        return
    yield "open_vocabulary_detection", {"labels": names}, boxes(scene, names)
    yield "phrase_grounding", {"phrases": phrases}, boxes(scene, phrases)
    caption = phrases[0]
    if len(phrases) > 1:
        caption = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    caption += " with text" if word else ""
    yield "captioning", {"detail": "short"}, TextResult(caption)
    target = scene.objects[-1]
    box = box_xyxy(target)
    instance = Instance(box, target.name, 1.0, (outline_xy(target),))
    yield "instance_segmentation", {"phrase": target.name}, InstancesResult((instance,))
    category = {"detail": "category", "region": list(box)}
    yield "region_description", category, TextResult(target.shape)


def boxes(scene: Scene, labels: list[str]) -> DetectionsResult:
    detections = []
    for drawn, label in zip(scene.objects, labels, strict=True):
        detections.append(Detection(box_xyxy(drawn), label, 1.0))
    return DetectionsResult(tuple(detections))


def score(answer: Result, truth: Result, image: ImageSize) -> float:
    """Return how right an answer is, from 0 to 1."""
    if isinstance(truth, TextResult):
        return float(answer == truth)
    if isinstance(truth, InstancesResult):
        assert isinstance(answer, InstancesResult)
        (expected,) = truth.instances
        expected_mask = expected.to_mask(image)
        mask = np.zeros_like(expected_mask)
        for instance in answer.instances:
            mask |= instance.to_mask(image)
        return float((mask & expected_mask).sum() / (mask | expected_mask).sum())
    pairs = match(labelled(truth), labelled(answer))
    num_right = sum(pair.kind in ("right", "loosely placed") for pair in pairs)
    total = len(truth.items) + len(answer.items)
    return 2 * num_right / total if total else 1.0


def labelled(result: Result) -> list[LabelledBox]:
    return [LabelledBox(item.label, item.box_xyxy) for item in result.items]


def test_answers_are_true(service: RunningService, model_id: str) -> None:
    client = Client(service.url)

    def scores(index: int) -> list[tuple[str, float, float]]:
        scene = evaluation_scene(index)
        size_wh = SIZES_WH[index % len(SIZES_WH)]
        file = png(render_scene(scene, 384).resize(size_wh))
        image = ImageSize(*size_wh)
        rows = []
        for task, parameters, truth in truths(scene):
            if region := parameters.get("region"):
                sides = zip(region, size_wh * 2, strict=True)
                parameters["region"] = [edge * side / CANVAS_PX for edge, side in sides]
            try:
                answer = client.predict(
                    file, task, parameters, model=model_id, options=UNCONSTRAINED
                )
            except UnsupportedTask:
                continue
            value = score(answer.result, scaled_result(truth, CANVAS, image), image)
            rows.append((task, value, BARS[model_id][type(truth)]))
        return rows

    by_task: dict[str, list[float]] = {}
    bars = {}
    with client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for rows in pool.map(scores, range(NUM_SCENES)):
            for task, value, bar in rows:
                by_task.setdefault(task, []).append(value)
                bars[task] = bar
        (offered,) = (model.tasks for model in client.models() if model.id == model_id)
    assert by_task.keys() == set(offered)
    means = {task: sum(values) / len(values) for task, values in by_task.items()}
    assert {task: mean for task, mean in means.items() if mean < bars[task]} == {}
