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
from laboratory.scoring import (
    Measure,
    Scorecard,
    Tally,
    box_iou,
    mask_iou,
    match_boxes,
    quad_iou,
    score_answer,
)
from tests.support.true_results import detection, true_result

SIZE_WH = (100, 80)
BOX = (10.0, 10.0, 30.0, 30.0)
FAR = (60.0, 10.0, 80.0, 30.0)
SQUARE = ((10.0, 10.0), (30.0, 10.0), (30.0, 30.0), (10.0, 30.0))


def tally(result: dict[str, Any], truth: Truth, measure: Measure) -> Tally:
    return score_answer(result, Question("q", "task", {}, truth), SIZE_WH).tally("q", measure)


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        ([], Tally(0, 0, 2)),
        ([detection("circle", BOX), detection("star", FAR)], Tally(2, 2, 2)),
        ([detection("star", FAR), detection("circle", BOX)], Tally(2, 2, 2)),
        ([detection("square", BOX)], Tally(0, 1, 2)),
        ([detection("circle", BOX), detection("circle", BOX)], Tally(1, 2, 2)),
        ([detection("circle", FAR), detection("star", BOX)], Tally(0, 2, 2)),
        ([detection("circle", (10, 10, 30, 19))], Tally(0, 1, 2)),
        ([detection("circle", (10, 10, 30, 20))], Tally(1, 1, 2)),  # an IoU of 0.5
        ([detection("circle", (30, 30, 10, 10))], Tally(0, 1, 2)),
    ],
)
def test_detections_match_boxes_of_the_same_label(
    detections: list[dict[str, Any]], expected: Tally
) -> None:
    truth = (LabelledBox("circle", BOX), LabelledBox("star", FAR))
    assert match_boxes(detections, truth, 0.5) == expected


def test_equal_labels_match_different_boxes() -> None:
    truth = (LabelledBox("circle", BOX), LabelledBox("circle", (14.0, 10.0, 34.0, 30.0)))
    found = [detection("circle", (14, 10, 34, 30), 0.9), detection("circle", BOX, 0.8)]
    assert match_boxes(found, truth, 0.9) == Tally(2, 2, 2)


def test_region_proposals_may_come_without_a_label() -> None:
    assert (
        match_boxes([{"label": None, "box": BOX, "score": 1.0}], (LabelledBox("", BOX),), 0.5).f1
        == 1
    )


def test_loose_box_counts_at_50_and_not_at_75() -> None:
    result = {"detections": [detection("circle", (10, 10, 30, 22))]}
    truth = DetectionsTruth((LabelledBox("circle", BOX),))
    assert tally(result, truth, "f1_at_50").f1 == 1
    assert tally(result, truth, "f1_at_75").f1 == 0


def test_only_confident_boxes_count_for_calibration() -> None:
    truth = DetectionsTruth((LabelledBox("circle", BOX),))
    result = {"detections": [detection("circle", BOX, 0.8), detection("star", FAR, 0.79)]}
    assert tally(result, truth, "confident_at_50") == Tally(1, 1, 1)
    assert tally(result, truth, "confident").f1 == 0.5


def test_precision_of_confident_boxes_ignores_missed_boxes() -> None:
    truth = DetectionsTruth((LabelledBox("circle", BOX), LabelledBox("star", FAR)))
    assert tally({"detections": [detection("circle", BOX, 0.8)]}, truth, "confident_at_50").f1 == 1
    assert tally({"detections": [detection("circle", FAR, 0.8)]}, truth, "confident_at_50").f1 == 0
    assert (
        tally({"detections": [detection("circle", BOX, 0.7)]}, truth, "confident_at_50") == Tally()
    )


@pytest.mark.parametrize(("detections", "share"), [([], 1.0), ([detection("circle", BOX)], 0.0)])
def test_absent_label_is_right_only_without_a_box(
    detections: list[dict[str, Any]], share: float
) -> None:
    assert tally({"detections": detections}, DetectionsTruth(()), "empty").f1 == share
    assert tally({"detections": detections}, DetectionsTruth(()), "f1_at_50") == Tally()


@pytest.mark.parametrize(
    ("text", "share"), [("STOP", 1.0), ("STOP.", 0.0), ("stop", 0.0), ("", 0.0)]
)
def test_text_must_be_equal(text: str, share: float) -> None:
    assert tally({"text": text}, TextTruth("STOP"), "exact").f1 == share


def test_text_in_an_image_without_a_word_is_wrong() -> None:
    assert tally({"text": "A"}, TextTruth(""), "empty") == Tally(0, 1, 1)
    assert tally({"text": ""}, TextTruth(""), "empty") == Tally(1, 1, 1)
    assert tally({"text": ""}, TextTruth("A"), "empty") == Tally()


def test_exactness_of_images_with_a_word_is_counted_separately() -> None:
    assert tally({"text": ""}, TextTruth(""), "exact_if_any") == Tally()
    assert tally({"text": ""}, TextTruth("A"), "exact_if_any") == Tally(0, 1, 1)
    assert tally({"text": "A"}, TextTruth("A"), "exact_if_any") == Tally(1, 1, 1)


@pytest.mark.parametrize(
    ("instances", "iou"),
    [
        ([], 0.0),
        ([{"polygons": [SQUARE]}], 1.0),
        ([{"polygons": []}], 0.0),
        ([{"polygons": [SQUARE, ((1, 1), (5, 5))]}, {"polygons": []}], 1.0),
        ([{"polygons": [((10, 10), (30, 10), (30, 20), (10, 20))]}], 0.5),
        ([{"polygons": [SQUARE]}, {"polygons": [((60, 10), (80, 10), (80, 30), (60, 30))]}], 0.5),
    ],
)
def test_masks_of_all_instances_are_united(instances: list[dict[str, Any]], iou: float) -> None:
    assert tally(
        {"instances": instances}, InstancesTruth((SQUARE,)), "mask_iou"
    ).f1 == pytest.approx(iou)


def test_run_length_mask_is_compared_like_a_polygon() -> None:
    pixels = np.zeros((80, 100), np.uint8, order="F")
    pixels[10:30, 10:25] = 1
    counts = coco_mask.encode(pixels)["counts"].decode()
    instance = {"mask": {"size": [80, 100], "counts": counts}}
    assert mask_iou([instance], [SQUARE], SIZE_WH) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("regions", "share"),
    [
        ([{"text": "STOP", "quad": SQUARE}], 1.0),
        ([{"text": "STOP", "quad": [(10, 10), (30, 10), (30, 22), (10, 22)]}], 1.0),
        ([{"text": "STOP", "quad": [(10, 10), (30, 10), (30, 19), (10, 19)]}], 0.0),
        ([{"text": "SHOP", "quad": SQUARE}], 0.0),
        ([{"text": "STOP", "quad": SQUARE}] * 2, 0.0),
        ([], 0.0),
    ],
)
def test_text_regions_match_by_text_and_quad(regions: list[dict[str, Any]], share: float) -> None:
    truth = TextRegionsTruth((QuadText("STOP", SQUARE),))
    assert tally({"text_regions": regions}, truth, "exact").f1 == share


def test_overlaps_of_boxes_and_quads_are_areas() -> None:
    assert box_iou(BOX, (20, 10, 40, 30)) == pytest.approx(1 / 3)
    assert box_iou(BOX, (30, 10, 50, 30)) == 0
    assert box_iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0
    assert quad_iou(SQUARE, [(20, 10), (40, 10), (40, 30), (20, 30)], SIZE_WH) == pytest.approx(
        1 / 3, abs=0.01
    )


def test_result_of_another_kind_is_refused() -> None:
    question = Question("q", "ocr", {}, TextTruth("STOP"))
    with pytest.raises(
        ValueError, match=r"result of ocr has keys \['detections'\]; expected: \['text'\]"
    ):
        score_answer({"detections": []}, question, SIZE_WH)


def test_scorecards_add_up_by_question_and_measure() -> None:
    right = Scorecard({("a", "exact"): Tally(1, 1, 1)})
    wrong = Scorecard({("a", "exact"): Tally(0, 1, 1)})
    other = Scorecard({("b", "f1_at_50"): Tally(1, 3, 2)})
    total = right + wrong + other
    assert total.tally("a", "exact").f1 == 0.5
    assert total.tally("b", "f1_at_50").f1 == pytest.approx(2 / 5)


@pytest.mark.parametrize("image_size_wh", [(192, 192), (640, 427)])
def test_the_truth_itself_scores_full_marks(image_size_wh: tuple[int, int]) -> None:
    card = Scorecard()
    for seed in range(20):
        for question in (
            question.scaled(image_size_wh) for question in questions(sample_scene(seed))
        ):
            card += score_answer(true_result(question.truth), question, image_size_wh)
    assert {total.f1 for total in card.tallies.values()} == {1.0}
