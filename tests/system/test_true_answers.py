"""Every task of both embedded models, over REST, against the truth of rendered scenes of several
sizes and shapes.

The bars are what the checkpoints are meant to reach, which over 1,000 scenes they do (`python -m
laboratory.evaluation`).
"""

from PIL import Image

from diptych_client import Client
from export.scenes import Scene, render_scene
from laboratory.evaluation import Measure, evaluate
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


def stretched(scene: Scene) -> Image.Image:
    """Return the scene at one of the sizes, which its seed decides."""
    return render_scene(scene, 384).resize(SIZES_WH[scene.seed % len(SIZES_WH)])


def test_answers_are_true(service: RunningService, model_id: str) -> None:
    with Client(service.url) as client:
        scorecard = evaluate(client, model_id, stretched, NUM_SCENES, NUM_CLIENTS)
        (offered,) = (model.tasks for model in client.models() if model.id == model_id)
    below = {}
    for measure, bar, names in BARS[model_id]:
        for name in names:
            tally = scorecard.tally(name, measure)
            assert tally.num_expected > 0 or measure == "empty"
            if tally.f1 < bar:
                below[name, measure] = tally.f1
    assert not below
    assert {name.split(" ")[0] for name, _ in scorecard.tallies} == set(offered)
