import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
)
from tasks.scores import (
    Calibration,
    CalibrationError,
    Guarantee,
    Proof,
    keep_proved,
    read_calibrations,
    read_proofs,
    refine,
    suppress,
)

TASK = "object_detection"
CALIBRATION = Calibration("m", "c", TASK, (0.25, 0.5, 0.75), (0.0, 0.25, 1.0))


def box(score: float, label: str = "cat", place: BoxXyxy = (0, 0, 10, 10)) -> Detection:
    return Detection(place, label, score)


def test_of_overlapping_boxes_with_one_label_the_best_is_kept() -> None:
    worse = box(0.5)
    best = box(0.9, place=(1, 0, 10, 10))
    apart = box(0.1, place=(20, 20, 30, 30))
    assert suppress((worse, best, apart), 0.5) == (best, apart)


def test_boxes_of_other_labels_are_kept() -> None:
    both = (box(0.9), box(0.5, "dog"))
    assert suppress(both, 0) == both


def test_only_a_larger_overlap_than_the_limit_suppresses() -> None:
    half = (box(0.9), box(0.5, place=(0, 0, 10, 5)))  # IoU 0.5
    assert suppress(half, 0.5) == half
    assert suppress(half, 0.49) == half[:1]
    assert suppress((box(0.9), box(0.5)), 1) == (box(0.9), box(0.5))


def test_the_size_of_boxes_does_not_matter() -> None:
    half = (box(0.9, place=(0, 0, 0.1, 0.1)), box(0.5, place=(0, 0, 0.1, 0.05)))
    assert suppress(half, 0.49) == half[:1]


@pytest.mark.parametrize(
    "place", [(10, 0, 20, 10), (0, 10, 10, 20), (12, 12, 22, 22), (12, 0, 22, 10)]
)
def test_boxes_that_touch_or_are_apart_do_not_overlap(place: BoxXyxy) -> None:
    both = (box(0.9), box(0.5, place=place))
    assert suppress(both, 0) == both


def test_a_suppressed_box_suppresses_none() -> None:
    chain = (box(0.9), box(0.8, place=(4, 0, 14, 10)), box(0.7, place=(8, 0, 18, 10)))
    assert suppress(chain, 0.4) == (chain[0], chain[2])


def test_no_box_and_boxes_without_area_are_accepted() -> None:
    assert suppress((), 0.5) == ()
    assert len(suppress((box(0.9, place=(1, 1, 1, 1)), box(0.8, place=(1, 1, 1, 1))), 0)) == 2


def test_text_regions_are_compared_by_the_boxes_around_their_quads() -> None:
    quad = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    regions = (TextRegion(quad, "A", 0.5), TextRegion(quad, "A", 0.9), TextRegion(quad, "B", 0.1))
    result = refine(TextRegionsResult(regions, is_parsed=True), None, 0, 0.5)
    assert result == TextRegionsResult(regions[1:], is_parsed=True)


@pytest.mark.parametrize(
    ("score", "expected"), [(0, 0), (0.25, 0), (0.375, 0.125), (0.5, 0.25), (0.625, 0.625), (1, 1)]
)
def test_a_calibration_is_linear_between_its_points_and_constant_outside(
    score: float, expected: float
) -> None:
    assert CALIBRATION.probability(score) == pytest.approx(expected)


def test_the_minimum_holds_for_calibrated_scores() -> None:
    result = refine(
        DetectionsResult((box(0.5), box(0.625)), is_parsed=True), CALIBRATION, 0.5, None
    )
    assert result == DetectionsResult((replace(box(0.5), score=0.625),), is_parsed=True)


def test_suppression_ranks_by_the_original_scores() -> None:
    """Calibration makes many scores equal, and the better of two boxes would be lost."""
    flat = replace(CALIBRATION, probabilities=(1.0, 1.0, 1.0))
    best = box(0.75, place=(1, 0, 10, 10))
    result = refine(DetectionsResult((box(0.5), best), is_parsed=True), flat, 0, 0.5)
    assert result == DetectionsResult((replace(best, score=1.0),), is_parsed=True)


def test_without_options_nothing_changes() -> None:
    result = InstancesResult((), is_parsed=False)
    assert refine(result, None, 0, None) == result
    boxes = DetectionsResult((box(0.0), box(0.0)), is_parsed=True)
    assert refine(boxes, None, 0, None) == boxes


ROW = {
    "model": "m",
    "checkpoint": "c",
    "task": TASK,
    "scores": [0.1, 0.9],
    "probabilities": [0, 1],
    "num_answers": 9,
}


def test_a_calibration_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"calibrations": [ROW]}))
    assert read_calibrations(tmp_path / "c.json") == (
        Calibration("m", "c", TASK, (0.1, 0.9), (0.0, 1.0)),
    )
    (tmp_path / "c.json").write_text(json.dumps({"calibrations": [ROW | {"min_object_share": 1}]}))
    assert read_calibrations(tmp_path / "c.json")[0].min_object_share == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task": "captioning"}, "task is 'captioning'; it must be a task that returns scores"),
        ({"task": "juggling"}, "task is 'juggling'"),
        ({"scores": []}, "0 scores for 2 probabilities"),
        ({"scores": [0.1]}, "1 scores for 2 probabilities"),
        ({"scores": [0.9, 0.1]}, "scores must increase"),
        ({"scores": [0.1, 0.1]}, "scores must increase"),
        ({"scores": [0.1, 1.1]}, "scores and probabilities must be 0 to 1"),
        ({"scores": [-0.1, 1]}, "scores and probabilities must be 0 to 1"),
        ({"scores": None}, "NoneType"),
        ({"probabilities": [1, 0]}, "probabilities must not decrease"),
        ({"probabilities": [0, float("nan")]}, "must be 0 to 1"),
        ({"with_tiles": "auto"}, "with_tiles is 'auto'; it must be true or false"),
        ({"min_object_share": 0}, "min_object_share is 0.0; it must be above 0 and at most 1"),
        ({"min_object_share": 1.1}, "min_object_share is 1.1; it must be above 0 and at most 1"),
        ({"min_object_share": float("nan")}, "min_object_share is nan; it must be above 0"),
        ({"min_object_share": "tiny"}, "could not convert string to float: 'tiny'"),
    ],
)
def test_an_invalid_calibration_is_refused(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"calibrations": [ROW | change]}))
    with pytest.raises(
        CalibrationError, match=rf"c\.json is not a valid calibration file.*{reason}"
    ):
        read_calibrations(tmp_path / "c.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"calibrations": [{}]}', '{"calibrations": [1]}']
)
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError):
        read_calibrations(tmp_path / "c.json")


BOX = (0.0, 0.0, 10.0, 10.0)
PROOF_ROW: dict[str, Any] = {
    "model": "m",
    "checkpoint": "c",
    "precision": "float32",
    "calibration": "",
    "fields": {"task": "object_detection"},
    "min_precision": 0.95,
    "confidence": 0.9,
    "min_score": 0.5,
    "max_labels": 2,
    "num_images": 80,
}


def found(*scores: float) -> DetectionsResult:
    return DetectionsResult(tuple(Detection(BOX, "a", score) for score in scores), True)


@pytest.mark.parametrize(
    ("scores", "kept", "left_out"),
    [
        ((), (), 0),
        ((0.5, 0.49), (0.5,), 1),
        ((0.9, 0.4, 0.8), (0.9, 0.8), 1),
        ((0.9, 0.8, 0.7), (), 3),  # more than the proof is about
    ],
)
def test_a_proof_keeps_the_objects_of_its_score_in_images_with_few_of_them(
    scores: tuple[float, ...], kept: tuple[float, ...], left_out: int
) -> None:
    proved = Guarantee(0.95, 0.9, 0.5, 2, 80, left_out)
    assert keep_proved(found(*scores), Proof(**PROOF_ROW)) == (found(*kept), proved)


def test_a_proof_keeps_regions_of_text() -> None:
    corner = (0.0, 0.0)
    region = TextRegion((corner, corner, corner, corner), "a", 0.4)
    result, proved = keep_proved(TextRegionsResult((region,), True), Proof(**PROOF_ROW))
    assert (result, proved.left_out) == (TextRegionsResult((), True), 1)


def test_a_file_may_have_calibrations_proofs_or_both(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"proofs": [PROOF_ROW]}))
    assert (read_calibrations(path), read_proofs(path)) == ((), (Proof(**PROOF_ROW),))
    path.write_text(json.dumps({"calibrations": []}))
    assert read_proofs(path) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fields": {"task": "captioning"}}, "must be a task that returns scores"),
        ({"fields": []}, "must be a task that returns scores"),
        ({"fields": {"task": []}}, "must be a task that returns scores"),
        ({"min_precision": 1}, "must be between 0 and 1"),
        ({"confidence": float("nan")}, "must be between 0 and 1"),
        ({"min_score": -0.1}, "min_score must be 0 to 1"),
        ({"max_labels": 0}, "max_labels and num_images at least 1"),
        ({"num_images": float("inf")}, "cannot convert float infinity"),
    ],
)
def test_an_invalid_proof_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"proofs": [PROOF_ROW | change]}))
    with pytest.raises(CalibrationError, match=rf"not a valid calibration file.*{reason}"):
        read_proofs(path)


def test_the_number_of_proofs_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"proofs": [PROOF_ROW] * 1001}))
    with pytest.raises(CalibrationError, match="has 1001 proofs; at most 1000 are allowed"):
        read_proofs(path)
