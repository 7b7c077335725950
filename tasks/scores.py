"""Scores of a result's objects: suppression, calibration, minimum score, proved thresholds.

A calibration is fitted by `diptych evaluate --calibrate` for one task of one checkpoint; its file:

    {"calibrations": [{"model": …, "checkpoint": sha256, "task": …,
                       "with_tiles": false, "min_object_share": 0.1,
                       "scores": […], "probabilities": […]}]}

`with_tiles`, which may be missing, is true if it holds for answers about images in tiles.
`min_object_share`, which may be missing or null, is the size of the smallest object that the model
still finds, as a share of the side of its input. `tiles: auto` makes the tiles so small.

In the same file or another one are proofs:

    {"proofs": [{"model": …, "checkpoint": sha256, "precision": …, "calibration": sha256 or "",
                 "fields": {"task": …, …}, "min_precision": 0.95, "confidence": 0.95,
                 "min_score": 0.6, "max_labels": 4, "num_images": 300}]}

A proof says from which score on an object is right often enough. `diptych annotate --labelled
--thresholds` proves it on labelled images, for one model in one precision, with its calibration,
and for the other fields of a request, such as the labels. An image in which more than `max_labels`
objects have the score is not part of the proof: none of its objects is kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.parsing import bounding_box
from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    TextRegion,
    TextRegionsResult,
    TextResult,
    objects_of,
)
from tasks.table import TASKS

MAX_PROOFS = 1000  # a file

ItemT = TypeVar("ItemT", Detection, Instance, TextRegion)


class CalibrationError(ValueError):
    """A calibration file is invalid, or of another checkpoint; the message says what is allowed."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probability that an object is right by its score, piecewise linear."""

    model: str
    checkpoint: str  # sha256, hexadecimal, as in the manifest of the artifacts
    task: str
    scores: tuple[float, ...]  # increasing
    probabilities: tuple[float, ...]  # non-decreasing
    with_tiles: bool = False
    min_object_share: float | None = None  # share of the side of the model's input

    def __post_init__(self) -> None:
        if self.task not in TASKS or TASKS[self.task].result_kind == "text":
            raise ValueError(f"task is {self.task!r}; it must be a task that returns scores")
        if not isinstance(self.with_tiles, bool):
            raise ValueError(f"with_tiles is {self.with_tiles!r}; it must be true or false")
        share = self.min_object_share
        if share is not None and not 0 < share <= 1:
            raise ValueError(
                f"min_object_share is {share!r}; it must be above 0 and at most 1, or null"
            )
        if not self.scores or len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"{len(self.scores)} scores for {len(self.probabilities)} probabilities"
            )
        if not all(0 <= number <= 1 for number in (*self.scores, *self.probabilities)):
            raise ValueError("scores and probabilities must be 0 to 1")
        if any(first >= second for first, second in pairwise(self.scores)):
            raise ValueError("scores must increase")
        if any(first > second for first, second in pairwise(self.probabilities)):
            raise ValueError("probabilities must not decrease")

    def probability(self, score: float) -> float:
        return float(np.interp(score, self.scores, self.probabilities))


@dataclass(frozen=True, slots=True)
class Proof:
    """A threshold that keeps at most a share of wrong objects."""

    model: str
    checkpoint: str  # sha256, hexadecimal, as in the manifest of the artifacts
    precision: str  # encoder's and decoder's, as the service lists it
    calibration: str  # `calibration_key` of the model
    fields: Mapping[str, object]  # request fields except the image
    min_precision: float
    confidence: float
    min_score: float
    max_labels: int
    num_images: int  # labelled ones, on which it is proved

    def __post_init__(self) -> None:
        task = TASKS.get(str(self.fields.get("task")))
        if task is None or task.result_kind == "text":
            task_id = self.fields.get("task")
            raise ValueError(f"task is {task_id!r}; it must be a task that returns scores")
        if not (0 < self.min_precision < 1 and 0 < self.confidence < 1):
            raise ValueError("min_precision and confidence must be between 0 and 1")
        if not (0 <= self.min_score <= 1 and self.max_labels >= 1 and self.num_images >= 1):
            raise ValueError("min_score must be 0 to 1, max_labels and num_images at least 1")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The proof that an answer keeps, and how many objects it left out."""

    min_precision: float
    confidence: float
    min_score: float
    max_labels: int
    images: int
    left_out: int


def calibration_key(calibrations: Mapping[tuple[str, bool], Calibration]) -> str:
    """Return the SHA-256 of a model's calibrations by task; empty if it has none.

    A score that is returned depends on them.
    """
    if not calibrations:
        return ""
    return hashlib.sha256(repr(sorted(calibrations.items())).encode()).hexdigest()


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """Read the calibrations of a file; raise `CalibrationError`."""
    rows = read_rows(path, "calibrations")
    try:
        calibrations: list[Calibration] = []
        for row in rows:
            scores = tuple(map(float, row["scores"]))
            probabilities = tuple(map(float, row["probabilities"]))
            owner = (row["model"], row["checkpoint"], row["task"])
            with_tiles = row.get("with_tiles", False)
            share = row.get("min_object_share")
            if share is not None:
                share = float(share)
            points = (scores, probabilities)
            calibrations.append(Calibration(*owner, *points, with_tiles, share))
        return tuple(calibrations)
    except (ValueError, KeyError, TypeError) as error:
        raise invalid_file(path, error) from error


def read_proofs(path: Path) -> tuple[Proof, ...]:
    """Return the proofs of a calibration file; raise `CalibrationError`."""
    rows = read_rows(path, "proofs")
    if len(rows) > MAX_PROOFS:
        raise CalibrationError(f"{path} has {len(rows)} proofs; at most {MAX_PROOFS} are allowed")
    try:
        return tuple(_proof(row) for row in rows)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise invalid_file(path, error) from error


def _proof(row: Mapping[str, Any]) -> Proof:
    return Proof(
        model=str(row["model"]),
        checkpoint=str(row["checkpoint"]),
        precision=str(row["precision"]),
        calibration=str(row["calibration"]),
        fields=dict(row["fields"]),
        min_precision=float(row["min_precision"]),
        confidence=float(row["confidence"]),
        min_score=float(row["min_score"]),
        max_labels=int(row["max_labels"]),
        num_images=int(row["num_images"]),
    )


def read_rows(path: Path, kind: Literal["calibrations", "proofs"]) -> list[Any]:
    """Return the rows of one kind of a calibration file, which has at least one kind.

    Raise `CalibrationError`.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kinds = {name: document[name] for name in ("calibrations", "proofs") if name in document}
        if not kinds:
            raise KeyError(kind)
        return list(kinds.get(kind, ()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise invalid_file(path, error) from error


def invalid_file(path: Path, error: Exception) -> CalibrationError:
    return CalibrationError(f"{path} is not a valid calibration file: {error!r}")


def refine(
    result: Result, calibration: Calibration | None, min_score: float, nms_iou: float | None
) -> Result:
    """Return the objects that suppression keeps, with calibrated scores from `min_score`."""

    def refined(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
        remaining = items if nms_iou is None else suppress(items, nms_iou)
        if calibration is not None:
            remaining = tuple(
                replace(item, score=calibration.probability(item.score)) for item in remaining
            )
        return tuple(item for item in remaining if item.score >= min_score)

    match result:
        case DetectionsResult():
            return replace(result, detections=refined(result.detections))
        case InstancesResult():
            return replace(result, instances=refined(result.instances))
        case TextRegionsResult():
            return replace(result, text_regions=refined(result.text_regions))
        case TextResult():
            return result


def keep_proved(result: Result, proof: Proof) -> tuple[Result, Guarantee]:
    """Return a result with the objects that a proof keeps."""
    proved = refine(result, None, proof.min_score, None)
    if len(objects_of(proved)) > proof.max_labels:
        proved = refine(result, None, math.inf, None)
    guarantee = Guarantee(
        min_precision=proof.min_precision,
        confidence=proof.confidence,
        min_score=proof.min_score,
        max_labels=proof.max_labels,
        images=proof.num_images,
        left_out=len(objects_of(result)) - len(objects_of(proved)),
    )
    return proved, guarantee


def suppress(items: tuple[ItemT, ...], max_iou: float) -> tuple[ItemT, ...]:
    """Return the items, in order, that overlap no better one of their label by more."""
    overlaps = _overlaps([box_of(item) for item in items]) > max_iou
    best: list[int] = []
    for index in sorted(range(len(items)), key=lambda index: -items[index].score):
        rivals = [other for other in best if _label(items[other]) == _label(items[index])]
        if not overlaps[index, rivals].any():
            best.append(index)
    return tuple(items[index] for index in sorted(best))


def _label(item: Detection | Instance | TextRegion) -> str:
    return item.text if isinstance(item, TextRegion) else item.label


def box_of(item: Detection | Instance | TextRegion) -> BoxXyxy:
    """Return the box of an object, or the one around a text region."""
    if not isinstance(item, TextRegion):
        return item.box
    return bounding_box(item.quad) or (0.0, 0.0, 0.0, 0.0)


def _overlaps(boxes: Sequence[BoxXyxy]) -> NDArray[np.float64]:
    """Return the intersection over union of all pairs, (N, N)."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    low = corners[:, :2]
    high = corners[:, 2:]
    sides = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    intersection = np.clip(sides, 0, None).prod(axis=2)
    areas = (high - low).prod(axis=1)
    union = areas[:, None] + areas[None] - intersection
    overlaps: NDArray[np.float64] = np.zeros_like(union)
    np.divide(intersection, union, out=overlaps, where=union > 0)
    return overlaps
