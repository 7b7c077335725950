"""Proved thresholds: their file, and the objects that they keep."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.results import Detection, DetectionsResult, TextRegion, TextRegionsResult
from tasks.scores import (
    CalibrationError,
    Guarantee,
    Proof,
    keep_proved,
    read_calibrations,
    read_proofs,
)

BOX = (0.0, 0.0, 10.0, 10.0)
ROW: dict[str, Any] = {
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
    assert keep_proved(found(*scores), Proof(**ROW)) == (found(*kept), proved)


def test_a_proof_keeps_regions_of_text() -> None:
    corner = (0.0, 0.0)
    region = TextRegion((corner, corner, corner, corner), "a", 0.4)
    result, proved = keep_proved(TextRegionsResult((region,), True), Proof(**ROW))
    assert (result, proved.left_out) == (TextRegionsResult((), True), 1)


def test_a_file_may_have_calibrations_proofs_or_both(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"proofs": [ROW]}))
    assert (read_calibrations(path), read_proofs(path)) == ((), (Proof(**ROW),))
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
    path.write_text(json.dumps({"proofs": [ROW | change]}))
    with pytest.raises(CalibrationError, match=rf"not a valid calibration file.*{reason}"):
        read_proofs(path)


def test_the_number_of_proofs_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"proofs": [ROW] * 1001}))
    with pytest.raises(CalibrationError, match="has 1001 proofs; at most 1000 are allowed"):
        read_proofs(path)
