"""Scoring of hand-made answers: wrong labels, duplicates, empty answers, masks of both formats."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from diptych_client.matching import LabelledBox
from export.scenes import sample_scene
from laboratory.questions import (
    DetectionsTruth,
    InstancesTruth,
    QuadText,
    Question,
    TextRegionsTruth,
    TextTruth,
    Truth,
    questions,
)
from laboratory.scoring import Measure, Scorecard, Tally, match_boxes, quad_iou, score_answer
from tests.support.true_results import detection, true_result

SIZE_WH = (100, 80)
BOX = (10.0, 10.0, 30.0, 30.0)
FAR = (60.0, 10.0, 80.0, 30.0)
SQUARE = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))
FAR_SQUARE = ((60, 10), (80, 10), (80, 30), (60, 30))
CIRCLE = LabelledBox("circle", BOX)
BOTH = (CIRCLE, LabelledBox("star", FAR))
RIGHT = Tally(1, 1, 1)
WRONG = Tally(0, 1, 1)


@pytest.mark.parametrize(
    ("detections", "num_right"),
    [
        ([], 0),
        ([detection("circle", BOX), detection("star", FAR)], 2),
        ([detection("star", FAR), detection("circle", BOX)], 2),
        ([detection("square", BOX)], 0),
        ([detection("circle", BOX), detection("circle", BOX)], 1),
        ([detection("circle", FAR), detection("star", BOX)], 0),
        ([detection("circle", (10, 10, 30, 19))], 0),
        ([detection("circle", (10, 10, 30, 20))], 1),  # an IoU of 0.5
        ([detection("circle", (30, 30, 10, 10))], 0),
    ],
)
def test_detections_match_boxes_of_the_same_label(
    detections: list[dict[str, Any]], num_right: int
) -> None:
    assert match_boxes(detections, BOTH, 0.5) == Tally(num_right, len(detections), 2)


def test_labels_may_be_equal_or_missing() -> None:
    truth = (CIRCLE, LabelledBox("circle", (14.0, 10.0, 34.0, 30.0)))
    found = [detection("circle", (14, 10, 34, 30), 0.9), detection("circle", BOX, 0.8)]
    assert match_boxes(found, truth, 0.9) == Tally(2, 2, 2)
    proposal = {"label": None, "box": BOX, "score": 1.0}
    assert match_boxes([proposal], (LabelledBox("", BOX),), 0.5) == RIGHT


def polygons(*rings: Any) -> dict[str, Any]:
    return {"polygons": list(rings)}


def run_lengths() -> dict[str, Any]:
    """Return three quarters of `SQUARE`."""
    pixels = np.zeros((80, 100), np.uint8, order="F")
    pixels[10:30, 10:25] = 1
    counts = coco_mask.encode(pixels)["counts"].decode()
    return {"mask": {"size": [80, 100], "counts": counts}}


def region(text: str = "STOP", bottom: float = 30) -> dict[str, Any]:
    return {"text": text, "quad": [(10, 10), (30, 10), (30, bottom), (10, bottom)]}


NO_BOX = DetectionsTruth(())
ONE_BOX = DetectionsTruth((CIRCLE,))
LOOSE = detection("circle", (10, 10, 30, 22))
MASK = InstancesTruth((SQUARE,))
WORD = TextRegionsTruth((QuadText("STOP", SQUARE),))


@pytest.mark.parametrize(
    ("answer", "truth", "measure", "expected"),
    [
        ([LOOSE], ONE_BOX, "f1_at_50", RIGHT),
        ([LOOSE], ONE_BOX, "f1_at_75", WRONG),
        # calibration: boxes with a score of at least 0.8 count, boxes that are missed do not
        ([detection("circle", BOX, 0.8)], DetectionsTruth(BOTH), "confident_at_50", RIGHT),
        ([detection("circle", FAR, 0.8)], DetectionsTruth(BOTH), "confident_at_50", WRONG),
        ([detection("circle", BOX, 0.79)], DetectionsTruth(BOTH), "confident_at_50", Tally()),
        ([LOOSE, detection("star", FAR, 0.79)], ONE_BOX, "confident", Tally(1, 2, 2)),
        # an absent label is right only without a box
        ([], NO_BOX, "empty", RIGHT),
        ([detection("circle", BOX)], NO_BOX, "empty", WRONG),
        ([detection("circle", BOX)], NO_BOX, "f1_at_50", Tally()),
        ("STOP", TextTruth("STOP"), "exact", RIGHT),
        ("STOP.", TextTruth("STOP"), "exact", WRONG),
        ("stop", TextTruth("STOP"), "exact", WRONG),
        ("", TextTruth("STOP"), "exact", WRONG),
        ("A", TextTruth(""), "empty", WRONG),
        ("", TextTruth(""), "empty", RIGHT),
        ("", TextTruth("A"), "empty", Tally()),
        ("", TextTruth(""), "exact_if_any", Tally()),
        ("", TextTruth("A"), "exact_if_any", WRONG),
        ("A", TextTruth("A"), "exact_if_any", RIGHT),
        ([region()], WORD, "exact", RIGHT),
        ([region(bottom=22)], WORD, "exact", RIGHT),
        ([region(bottom=19)], WORD, "exact", WRONG),
        ([region("SHOP")], WORD, "exact", WRONG),
        ([region()] * 2, WORD, "exact", WRONG),
        ([], WORD, "exact", WRONG),
        # masks of all instances are united
        ([], MASK, "mask_iou", WRONG),
        ([polygons(SQUARE)], MASK, "mask_iou", RIGHT),
        ([polygons()], MASK, "mask_iou", WRONG),
        ([polygons(((1, 1), (5, 5)), SQUARE), polygons()], MASK, "mask_iou", RIGHT),
        ([polygons(SQUARE), polygons(FAR_SQUARE)], MASK, "mask_iou", Tally(0.5, 1, 1)),
        ([run_lengths()], MASK, "mask_iou", Tally(0.75, 1, 1)),
    ],
)
def test_answers_are_measured(answer: Any, truth: Truth, measure: Measure, expected: Tally) -> None:
    (kind,) = true_result(truth)
    card = score_answer({kind: answer}, asking(truth), SIZE_WH)
    assert card.tally("q", measure) == expected


def asking(truth: Truth) -> Question:
    return Question("q", "ocr", {}, truth)


def test_the_overlap_of_quads_is_an_area() -> None:
    shifted = [(20, 10), (40, 10), (40, 30), (20, 30)]
    assert quad_iou(SQUARE, shifted, SIZE_WH) == pytest.approx(1 / 3, abs=0.01)


def test_result_of_another_kind_is_refused() -> None:
    message = r"result of ocr has keys \['detections'\]; expected: \['text'\]"
    with pytest.raises(ValueError, match=message):
        score_answer({"detections": []}, asking(TextTruth("STOP")), SIZE_WH)


def test_scorecards_add_up_by_question_and_measure() -> None:
    right = Scorecard({("a", "exact"): RIGHT})
    wrong = Scorecard({("a", "exact"): WRONG})
    total = right + wrong + Scorecard({("b", "f1_at_50"): Tally(1, 3, 2)})
    assert total.tally("a", "exact").f1 == 0.5
    assert total.tally("b", "f1_at_50").f1 == pytest.approx(2 / 5)


@pytest.mark.parametrize("image_size_wh", [(192, 192), (640, 427)])
def test_the_truth_itself_scores_full_marks(image_size_wh: tuple[int, int]) -> None:
    card = Scorecard()
    for seed in range(20):
        for asked in questions(sample_scene(seed)):
            question = asked.scaled(image_size_wh)
            card += score_answer(true_result(question.truth), question, image_size_wh)
    assert {total.f1 for total in card.tallies.values()} == {1.0}
