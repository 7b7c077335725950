"""Every task of both embedded models, over REST, against the truth of rendered scenes of several sizes and shapes.

The bars lie a little under what the checkpoints reach (`python -m export.evaluate`). A question that a model
never learnt has no bar; it is asked all the same, and the scoring demands an answer in the task's form.
"""

import pytest

from export.evaluation import Evaluation, SceneImage, evaluate, png_image
from export.scenes import Scene, render_scene
from export.scenes.scoring import Measure
from tests.support.running_service import RunningService

NUM_SCENES = 20
SIZES_WH = ((192, 192), (640, 480), (300, 500), (1000, 400))

BARS: dict[str, dict[tuple[str, Measure], float]] = {
    "florence-2-mini": {
        ("captioning short", "exact"): 0.85,
        ("captioning detailed", "exact"): 0.15,
        ("object_detection", "f1_at_50"): 0.95,
        ("object_detection", "f1_at_75"): 0.95,
        ("dense_region_captioning", "f1_at_50"): 0.95,
        ("dense_region_captioning", "f1_at_75"): 0.95,
        ("region_proposal", "f1_at_50"): 0.95,
        ("region_proposal", "f1_at_75"): 0.95,
        ("open_vocabulary_detection shape", "f1_at_50"): 0.95,
        ("open_vocabulary_detection coloured shape", "f1_at_50"): 0.65,
        ("open_vocabulary_detection several", "f1_at_50"): 0.55,
        ("open_vocabulary_detection absent", "empty"): 0.7,
        ("phrase_grounding caption", "f1_at_50"): 0.42,
        ("phrase_grounding phrases", "f1_at_50"): 0.5,
        ("instance_segmentation phrase", "mask_iou"): 0.65,
        ("instance_segmentation region", "mask_iou"): 0.3,
        ("ocr", "exact"): 0.75,
        ("ocr", "empty"): 0.9,
        ("ocr_with_regions", "exact"): 0.75,
        ("ocr_with_regions", "empty"): 0.9,
        ("region_description category", "exact"): 0.9,
        ("region_description description", "exact"): 0.8,
        ("region_description text", "exact"): 0.5,
    },
    "paligemma-mini": {
        ("open_vocabulary_detection shape", "f1_at_50"): 0.6,
        ("open_vocabulary_detection coloured shape", "f1_at_50"): 0.5,
        ("open_vocabulary_detection several", "f1_at_50"): 0.1,
        ("phrase_grounding phrases", "f1_at_50"): 0.1,
        ("instance_segmentation phrase", "mask_iou"): 0.5,
        ("ocr", "exact"): 0.4,
        ("ocr", "empty"): 0.9,
        ("visual_question_answering count", "exact"): 0.4,
        ("visual_question_answering presence", "exact"): 0.42,
    },
}


def in_turn(scene: Scene) -> SceneImage:
    """The scene stretched to one of the sizes, which its seed decides."""
    return png_image(render_scene(scene, 384).resize(SIZES_WH[scene.seed % len(SIZES_WH)]))


@pytest.fixture(scope="module")
def evaluations(service: RunningService) -> dict[str, Evaluation]:
    with service.client() as client:
        return {model_id: evaluate(client, model_id, in_turn, NUM_SCENES) for model_id in BARS}


@pytest.mark.parametrize(("model", "name", "measure"), [(m, *key) for m, bars in BARS.items() for key in bars])
def test_answers_are_as_true_as_the_checkpoint(
    evaluations: dict[str, Evaluation], model: str, name: str, measure: Measure
) -> None:
    evaluation = evaluations[model]
    assert evaluation.scorecard.tally(name, measure).num_expected > 0 or measure == "empty"
    assert evaluation.score(name, measure) >= BARS[model][name, measure]


def test_every_offered_task_was_asked(service: RunningService, evaluations: dict[str, Evaluation]) -> None:
    with service.client() as client:
        models = {model["id"]: set(model["tasks"]) for model in client.get("/v1/models").json()["data"]}
    asked = {model: {name.split(" ")[0] for name in e.latencies_ms} for model, e in evaluations.items()}
    assert asked == models
