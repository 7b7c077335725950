"""Every task of both embedded models, over REST, against the truth of rendered scenes of several
sizes and shapes.

The bars are what the checkpoints are meant to reach, which over 1,000 scenes they do (`python -m
laboratory.evaluation`).
"""

from concurrent.futures import ThreadPoolExecutor

import httpx

from diptych_client.matching import LabelledBox
from export.scenes import Scene, box_xyxy, render_scene
from laboratory.evaluation import SceneImage, encoded, evaluate, evaluation_scene, predict
from laboratory.questions import DetectionsTruth, Question
from laboratory.scoring import Measure, match_boxes
from tests.support.running_service import RunningService

NUM_SCENES = 24
NUM_CLIENTS = 4
SIZES_WH = ((192, 192), (640, 480), (300, 500), (1000, 400))

FIND = "open_vocabulary_detection"
ASK = "visual_question_answering"
LABELS = [f"{FIND} {labels}" for labels in ("shape", "coloured shape", "several")]
GROUNDED = ["phrase_grounding caption", "phrase_grounding phrases"]
BOXES = ["object_detection", "dense_region_captioning", "region_proposal"]
NOTHING = ["ocr", f"{ASK} text", "captioning short", f"{FIND} absent", f"{FIND} no object"]
BARS: dict[str, list[tuple[Measure, float, list[str]]]] = {
    "florence-2-mini": [
        ("exact", 0.95, ["captioning short", f"{ASK} color", f"{ASK} presence", f"{ASK} count"]),
        ("exact", 0.95, ["region_description category", "region_description description"]),
        ("exact", 0.92, ["ocr", "ocr_with_regions", f"{ASK} text"]),
        ("exact", 0.90, ["captioning detailed", "region_description text"]),
        ("exact_if_any", 0.90, ["ocr", "ocr_with_regions"]),
        ("f1_at_50", 0.97, [*BOXES, *LABELS, *GROUNDED]),
        ("f1_at_75", 0.92, [*BOXES, *LABELS, *GROUNDED]),
        ("mask_iou", 0.90, ["instance_segmentation phrase", "instance_segmentation region"]),
        ("empty", 0.90, [*NOTHING, *BOXES, "ocr_with_regions"]),
    ],
    "paligemma-mini": [
        ("exact", 0.92, [f"{ASK} color", f"{ASK} presence", f"{ASK} count"]),
        ("exact", 0.90, ["captioning short", f"{ASK} text"]),
        ("exact", 0.85, ["captioning detailed", "ocr"]),
        ("f1_at_50", 0.92, [*LABELS, *GROUNDED]),
        ("f1_at_75", 0.80, [*LABELS, *GROUNDED]),
        ("mask_iou", 0.85, ["instance_segmentation phrase"]),
        ("empty", 0.90, NOTHING),
    ],
}


def stretched(scene: Scene) -> SceneImage:
    """Return the scene at one of the sizes, which its seed decides."""
    return encoded(render_scene(scene, 384).resize(SIZES_WH[scene.seed % len(SIZES_WH)]))


def test_answers_are_true(client: httpx.Client, model_id: str) -> None:
    scorecard = evaluate(client, model_id, stretched, NUM_SCENES, NUM_CLIENTS)
    below = {}
    for measure, bar, names in BARS[model_id]:
        for name in names:
            tally = scorecard.tally(name, measure)
            assert tally.num_expected > 0 or measure == "empty"
            if tally.f1 < bar:
                below[name, measure] = tally.f1
    assert not below
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    evaluated = {name.split(" ")[0] for name, _ in scorecard.tallies}
    assert evaluated == set(models[model_id]["tasks"])


def bare_question(scene: Scene) -> Question:
    """Return a question with shapes and coloured shapes without an article, of all objects."""
    phrases = list(dict.fromkeys(shape.name for shape in scene.objects))
    if scene.seed % 2:
        phrases = [scene.objects[0].shape]
    boxes = []
    for phrase in phrases:
        for shape in scene.objects:
            if phrase in (shape.shape, shape.name):
                boxes.append(LabelledBox(phrase, box_xyxy(shape)))
    truth = DetectionsTruth(tuple(boxes))
    return Question("bare", "phrase_grounding", {"phrases": phrases}, truth)


def test_phrases_without_an_article_find_their_objects(
    service: RunningService, model_id: str
) -> None:
    """Exactly the true boxes, each with its phrase as label."""
    scenes = [evaluation_scene(index) for index in range(60)]
    scenes = [scene for scene in scenes if scene.objects][:40]

    def is_right(scene: Scene) -> bool:
        image = stretched(scene)
        question = bare_question(scene).scaled(image.size_wh)
        response = predict(client, model_id, question, image, is_constrained=True)
        assert response is not None
        assert isinstance(question.truth, DetectionsTruth)
        tally = match_boxes(response.json()["result"]["detections"], question.truth.boxes, 0.5)
        return tally.num_right == tally.num_answered == tally.num_expected

    with service.client() as client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        assert sum(pool.map(is_right, scenes)) >= 0.95 * len(scenes)
