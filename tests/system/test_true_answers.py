"""Every task of both embedded models, over REST, against the truth of rendered scenes of several
sizes and shapes.

The bars are what the checkpoints are meant to reach, which over 1,000 scenes they do (`python -m
laboratory.evaluation`).
"""

import pytest

from export.scenes import Scene, render_scene
from laboratory.evaluation import SceneImage, encoded, evaluate
from laboratory.evaluation.__main__ import main
from laboratory.scoring import Measure, Scorecard
from tests.support.running_service import RunningService

NUM_SCENES = 24
NUM_CLIENTS = 4
SIZES_WH = ((192, 192), (640, 480), (300, 500), (1000, 400))

BARS: dict[str, dict[tuple[str, Measure], float]] = {
    "florence-2-mini": {
        ("captioning short", "exact"): 0.95,
        ("captioning detailed", "exact"): 0.90,
        ("object_detection", "f1_at_50"): 0.97,
        ("object_detection", "f1_at_75"): 0.92,
        ("dense_region_captioning", "f1_at_50"): 0.97,
        ("dense_region_captioning", "f1_at_75"): 0.92,
        ("region_proposal", "f1_at_50"): 0.97,
        ("region_proposal", "f1_at_75"): 0.92,
        ("open_vocabulary_detection shape", "f1_at_50"): 0.97,
        ("open_vocabulary_detection shape", "f1_at_75"): 0.92,
        ("open_vocabulary_detection coloured shape", "f1_at_50"): 0.97,
        ("open_vocabulary_detection coloured shape", "f1_at_75"): 0.92,
        ("open_vocabulary_detection several", "f1_at_50"): 0.97,
        ("open_vocabulary_detection several", "f1_at_75"): 0.92,
        ("open_vocabulary_detection absent", "empty"): 0.90,
        ("phrase_grounding caption", "f1_at_50"): 0.97,
        ("phrase_grounding caption", "f1_at_75"): 0.92,
        ("phrase_grounding phrases", "f1_at_50"): 0.97,
        ("phrase_grounding phrases", "f1_at_75"): 0.92,
        ("instance_segmentation phrase", "mask_iou"): 0.90,
        ("instance_segmentation region", "mask_iou"): 0.90,
        ("ocr", "exact"): 0.92,
        ("ocr", "exact_if_any"): 0.90,
        ("ocr_with_regions", "exact"): 0.92,
        ("ocr_with_regions", "exact_if_any"): 0.90,
        ("region_description text", "exact"): 0.90,
        ("region_description category", "exact"): 0.95,
        ("region_description description", "exact"): 0.95,
        ("visual_question_answering color", "exact"): 0.95,
        ("visual_question_answering presence", "exact"): 0.95,
        ("visual_question_answering count", "exact"): 0.95,
        ("visual_question_answering text", "exact"): 0.92,
        ("ocr", "empty"): 0.90,
        ("ocr_with_regions", "empty"): 0.90,
        ("visual_question_answering text", "empty"): 0.90,
        ("object_detection", "empty"): 0.90,
        ("dense_region_captioning", "empty"): 0.90,
        ("region_proposal", "empty"): 0.90,
        ("open_vocabulary_detection no object", "empty"): 0.90,
        ("captioning short", "empty"): 0.90,
    },
    "paligemma-mini": {
        ("captioning short", "exact"): 0.90,
        ("captioning detailed", "exact"): 0.85,
        ("open_vocabulary_detection shape", "f1_at_50"): 0.92,
        ("open_vocabulary_detection shape", "f1_at_75"): 0.80,
        ("open_vocabulary_detection coloured shape", "f1_at_50"): 0.92,
        ("open_vocabulary_detection coloured shape", "f1_at_75"): 0.80,
        ("open_vocabulary_detection several", "f1_at_50"): 0.92,
        ("open_vocabulary_detection several", "f1_at_75"): 0.80,
        ("open_vocabulary_detection absent", "empty"): 0.90,
        ("phrase_grounding phrases", "f1_at_50"): 0.92,
        ("phrase_grounding phrases", "f1_at_75"): 0.80,
        ("instance_segmentation phrase", "mask_iou"): 0.85,
        ("ocr", "exact"): 0.85,
        ("visual_question_answering color", "exact"): 0.92,
        ("visual_question_answering presence", "exact"): 0.92,
        ("visual_question_answering count", "exact"): 0.92,
        ("visual_question_answering text", "exact"): 0.90,
        ("ocr", "empty"): 0.90,
        ("visual_question_answering text", "empty"): 0.90,
        ("phrase_grounding caption", "f1_at_50"): 0.92,
        ("phrase_grounding caption", "f1_at_75"): 0.80,
        ("open_vocabulary_detection no object", "empty"): 0.90,
        ("captioning short", "empty"): 0.90,
    },
}


def in_turn(scene: Scene) -> SceneImage:
    """The scene stretched to one of the sizes, which its seed decides."""
    return encoded(render_scene(scene, 384).resize(SIZES_WH[scene.seed % len(SIZES_WH)]))


@pytest.fixture(scope="module")
def evaluations(service: RunningService) -> dict[str, Scorecard]:
    with service.client() as client:
        return {
            model_id: evaluate(client, model_id, in_turn, NUM_SCENES, NUM_CLIENTS)
            for model_id in BARS
        }


@pytest.mark.parametrize(
    ("model", "name", "measure"), [(m, *key) for m, bars in BARS.items() for key in bars]
)
def test_answers_are_as_true_as_the_checkpoint(
    evaluations: dict[str, Scorecard], model: str, name: str, measure: Measure
) -> None:
    tally = evaluations[model].tally(name, measure)
    assert tally.num_expected > 0 or measure == "empty"
    assert tally.f1 >= BARS[model][name, measure]


def test_every_offered_task_was_asked(
    service: RunningService, evaluations: dict[str, Scorecard]
) -> None:
    with service.client() as client:
        models = {
            model["id"]: set(model["tasks"]) for model in client.get("/v1/models").json()["data"]
        }
    asked = {}
    for model, scorecard in evaluations.items():
        asked[model] = {name.split(" ")[0] for name, _ in scorecard.tallies}
    assert asked == models


def test_the_command_prints_a_table_for_each_condition(
    service: RunningService, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--url", service.url, "--scenes", "2", "--clients", "2"]
    main([*options, "--conditions", "plain", "jpeg"])
    headings = [line for line in capsys.readouterr().out.splitlines() if "scenes" in line]
    assert headings == ["plain, 2 scenes", "jpeg, 2 scenes"]
