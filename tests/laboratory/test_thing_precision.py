"""A served model is asked about scenes of things, and each answer is scored once."""

import httpx

from laboratory.evaluation import task_accuracy
from laboratory.thing_precision import score_things
from tests.support.drawn_material import DrawnMaterial

NUM_SCENES = 3


def test_a_model_is_asked_what_it_offers_about_things(client: httpx.Client) -> None:
    scorecard = score_things(DrawnMaterial(), client, "paligemma-mini", NUM_SCENES, num_clients=2)
    asked = {name for name, _ in scorecard.tallies}
    assert {"captioning short", "open_vocabulary_detection kind"} <= asked
    assert "object_detection" not in asked
    assert "ocr words" not in asked  # it would count again as ocr
    assert scorecard.tally("captioning short", "exact").num_expected == NUM_SCENES
    assert scorecard.tally("ocr", "exact").num_expected == NUM_SCENES
    assert "ocr, exact: all images" in task_accuracy(scorecard)
