import base64
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tasks.errors import CheckpointFileError
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
    Guarantee,
    Proof,
    is_unfamiliar,
    keep_proved,
    read_calibrations,
    read_proofs,
    refine,
    suppress,
)

TASK = "object_detection"
CALIBRATION = Calibration("m", "c", TASK, (0.25, 0.5, 0.75), (0.0, 0.25, 1.0))
SQUARE = (0.0, 0.0, 10.0, 10.0)
QUAD = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))


def box(score: float | None, label: str = "cat", place: BoxXyxy = SQUARE) -> Detection:
    return Detection(place, label, score)


@pytest.mark.parametrize(
    ("others", "max_iou", "indices"),
    [
        ([box(0.5)], 0.5, [0]),
        ([box(0.95, place=(1, 0, 10, 10)), box(0.1, place=(20, 20, 30, 30))], 0.5, [1, 2]),
        ([box(0.5, "dog")], 0, [0, 1]),
        ([box(0.5, place=(0, 0, 10, 5))], 0.5, [0, 1]),  # IoU 0.5
        ([box(0.5, place=(0, 0, 10, 5))], 0.49, [0]),
        ([box(0.5)], 1, [0, 1]),
        *(([box(0.5, place=place)], 0, [0, 1]) for place in [(10, 0, 20, 10), (0, 10, 10, 20)]),
        ([box(0.5, place=(12, 12, 22, 22))], 0, [0, 1]),
        # a suppressed box suppresses none
        ([box(0.8, place=(4, 0, 14, 10)), box(0.7, place=(8, 0, 18, 10))], 0.4, [0, 2]),
        ([box(0.8, place=(1, 1, 1, 1)), box(0.7, place=(1, 1, 1, 1))], 0, [0, 1, 2]),
    ],
)
def test_suppression(others: list[Detection], max_iou: float, indices: list[int]) -> None:
    """The first box has a score of 0.9."""
    boxes = (box(0.9), *others)
    assert suppress(boxes, max_iou) == tuple(boxes[index] for index in indices)
    assert suppress((), max_iou) == ()


def test_suppression_compares_near_boxes_alone() -> None:
    boxes = tuple(box(0.5, place=(2.0 * left, 0, 2.0 * left + 1, 1)) for left in range(3000))
    tracemalloc.start()
    try:
        assert suppress(boxes, 0.5) == boxes
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000  # all pairs would be 72 MB
    half = (box(0.9, place=(0, 0, 0.1, 0.1)), box(0.5, place=(0, 0, 0.1, 0.05)))
    assert suppress(half, 0.49) == half[:1]


@pytest.mark.parametrize(
    ("score", "expected"), [(0, 0), (0.25, 0), (0.375, 0.125), (0.5, 0.25), (0.625, 0.625), (1, 1)]
)
def test_calibration_is_linear_between_points(score: float, expected: float) -> None:
    assert CALIBRATION.probability(score) == pytest.approx(expected)


def test_calibrated_scores_are_compared_with_minimum() -> None:
    """Suppression ranks by the original ones: calibration makes many scores equal."""
    boxes = DetectionsResult((box(0.5), box(0.625)), is_parsed=True)
    assert refine(boxes, CALIBRATION, 0.625, None).detections == (boxes.detections[1],)  # type: ignore[union-attr]
    flat = replace(CALIBRATION, probabilities=(1.0, 1.0, 1.0))
    for max_iou in (0.5, 0.0):
        refined = refine(boxes, flat, 1.0, max_iou)
        assert refined == DetectionsResult((box(1.0),), is_parsed=True)


def test_text_regions_are_refined_as_boxes() -> None:
    regions = (TextRegion(QUAD, "A", 0.5), TextRegion(QUAD, "A", 0.9), TextRegion(QUAD, "B", 0.1))
    result = refine(TextRegionsResult(regions, is_parsed=True), None, 0, 0.5)
    assert result == TextRegionsResult(regions[1:], is_parsed=True)
    proved, guarantee = keep_proved(result, Proof(**PROOF_ROW))
    assert (proved, guarantee.left_out) == (TextRegionsResult(regions[1:2], True), 1)


def test_nothing_changes_without_options() -> None:
    result = InstancesResult((), is_parsed=False)
    assert refine(result, None, 0, None) == result
    boxes = DetectionsResult((box(0.0), box(0.0)), is_parsed=True)
    assert refine(boxes, None, 0, None) == boxes


ROW: dict[str, Any] = {
    "model": "m",
    "checkpoint": "c",
    "task": TASK,
    "scores": [0.1, 0.9],
    "probabilities": [0, 1],
    "num_answers": 9,
}
PROOF_ROW: dict[str, Any] = {
    "model": "m",
    "checkpoint": "c",
    "precision": "float32",
    "calibration": "",
    "fields": {"task": TASK},
    "min_precision": 0.95,
    "confidence": 0.9,
    "min_score": 0.5,
    "max_labels": 2,
    "num_images": 80,
}


IMAGES: dict[str, Any] = {
    "precision": "float32",
    "mean": "AACAPwAAAEA=",  # 1, 2
    "components": "ADwAAA==",  # 1, 0
    "variances": [4],
    "residual_variance": 0.25,
    "distances": [0.1 * number for number in range(199)],
}


def written(tmp_path: Path, **rows: Any) -> Path:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(rows))
    return path


def test_calibration_file(tmp_path: Path) -> None:
    options = {"min_object_share": 1, "with_tiles": True}
    path = written(tmp_path, calibrations=[ROW, ROW | options])
    plain = Calibration("m", "c", TASK, (0.1, 0.9), (0.0, 1.0))
    assert read_calibrations(path) == (plain, replace(plain, **options))  # type: ignore[arg-type]
    assert read_proofs(path) == ()
    path = written(tmp_path, proofs=[PROOF_ROW])
    assert (read_calibrations(path), read_proofs(path)) == ((), (Proof(**PROOF_ROW),))


@pytest.mark.parametrize(
    ("vector", "num_nearer"),
    [
        ((1, 2), 0),
        ((5, 2), 20),  # two standard deviations along the component
        ((5.1, 2), 21),
        ((1, 3.01), 21),  # beside it
        ((1, 1000), 199),
        ((np.nan, 2), 199),
    ],
)
def test_familiarity(tmp_path: Path, vector: tuple[float, float], num_nearer: int) -> None:
    (calibration,) = read_calibrations(written(tmp_path, calibrations=[ROW | {"images": IMAGES}]))
    assert calibration.images is not None
    embedding = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    familiarity = calibration.images.familiarity(embedding)
    assert familiarity == pytest.approx(1 - num_nearer / 200)
    assert is_unfamiliar(familiarity) == (num_nearer == 199)
    assert calibration.images.familiarity("") is None
    assert not is_unfamiliar(None)


@pytest.mark.parametrize(
    ("kind", "key", "values", "reason"),
    [
        ("images", "mean", [1, "AACA", "!", "A" * 4_000_004, ""], "images"),
        ("images", "components", ["ADw=", "ADwAAAAA"], "components for 2 means and 1 variances"),
        ("images", "variances", [[], [0], [-1], [float("nan")]], "images"),
        ("images", "residual_variance", [0, float("inf")], "images"),
        ("images", "distances", [list(range(99)), [float("nan")] * 100, [-1] * 100], "images"),
        ("calibration", "task", ["captioning", "x" * 100_000], "not a task that returns scores"),
        ("calibration", "scores", [[]], "at least 1 item"),
        ("calibration", "scores", [[0.1]], "1 scores for 2 probabilities"),
        ("calibration", "scores", [[0.1, 0.1]], "scores must increase"),
        ("calibration", "scores", [[0.1, 1.1]], "less than or equal to 1, not 1.1"),
        ("calibration", "scores", [[-0.1, 1]], "greater than or equal to 0"),
        ("calibration", "scores", [None], "valid array, not None"),
        ("calibration", "probabilities", [[1, 0]], "probabilities must not decrease"),
        ("calibration", "probabilities", [[0, float("nan")]], "finite number"),
        ("calibration", "with_tiles", ["auto", 1], "valid boolean"),
        ("calibration", "min_object_share", [0], "greater than 0"),
        ("calibration", "min_object_share", [1.1], "less than or equal to 1"),
        ("calibration", "min_object_share", [float("nan")], "finite number"),
        ("calibration", "min_object_share", ["tiny"], "valid number"),
        ("proof", "fields", [{"task": "captioning"}, {"task": []}, {}], "that returns scores"),
        ("proof", "fields", [[]], "be an object"),
        ("proof", "min_precision", [1], "less than 1"),
        ("proof", "min_precision", [0], "greater than 0"),
        ("proof", "confidence", [float("nan")], "finite number"),
        ("proof", "min_score", [-0.1], "greater than or equal to 0"),
        ("proof", "max_labels", [0], "greater than or equal to 1"),
        ("proof", "num_images", [0], "greater than or equal to 1"),
        ("proof", "num_images", [float("inf")], "finite number"),
    ],
)
def test_bad_row_is_refused(
    tmp_path: Path, kind: str, key: str, values: list[Any], reason: str
) -> None:
    for value in values:
        change = {key: value}
        documents = {
            "images": {"calibrations": [ROW | {"images": IMAGES | change}]},
            "calibration": {"calibrations": [ROW | change]},
            "proof": {"proofs": [PROOF_ROW | change]},
        }
        path = written(tmp_path, **documents[kind])
        with pytest.raises(
            CheckpointFileError, match=rf"c\.json is not a valid.*{reason}"
        ) as raised:
            read_proofs(path) if kind == "proof" else read_calibrations(path)
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"calibrations": [{}]}', '{"calibrations": [1]}']
)
def test_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CheckpointFileError):
        read_calibrations(tmp_path / "c.json")


@pytest.mark.parametrize(("name", "row"), [("calibrations", ROW), ("proofs", PROOF_ROW)])
def test_rows_and_their_problems_are_limited(tmp_path: Path, name: str, row: Any) -> None:
    read_proofs(written(tmp_path, **{name: [row] * 1000}))
    with pytest.raises(CheckpointFileError, match="at most 1000 items"):
        read_proofs(written(tmp_path, **{name: [row] * 1001}))
    with pytest.raises(CheckpointFileError) as raised:
        read_proofs(written(tmp_path, **{name: [{}, {}]}))
    assert isinstance(raised.value.__cause__, ValidationError)
    assert {problem["loc"][1] for problem in raised.value.__cause__.errors()} == {0}


@pytest.mark.parametrize(
    ("scores", "proved_scores", "left_out"),
    [
        ((), (), 0),
        ((0.5, 0.49), (0.5,), 1),
        ((0.9, 0.4, 0.8, None), (0.9, 0.8), 2),
        ((0.9, 0.8, 0.7), (), 3),  # more than the proof is about
    ],
)
def test_proved_objects(
    scores: tuple[float, ...], proved_scores: tuple[float, ...], left_out: int
) -> None:
    guarantee = Guarantee(0.95, 0.9, 0.5, 2, 80, left_out)
    result = DetectionsResult(tuple(map(box, scores)), True)
    proved = DetectionsResult(tuple(map(box, proved_scores)), True)
    assert keep_proved(result, Proof(**PROOF_ROW)) == (proved, guarantee)
