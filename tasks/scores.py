"""Scores of a result's objects: suppression, calibration, minimum score.

A calibration is fitted by `diptych evaluate --calibrate` for one task of one checkpoint; its file:

    {"calibrations": [{"model": …, "checkpoint": sha256, "task": …,
                       "with_tiles": false, "scores": […], "probabilities": […]}]}

`with_tiles`, which may be missing, is true if it holds for answers about images in tiles.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

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
)
from tasks.table import TASKS

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

    def __post_init__(self) -> None:
        if self.task not in TASKS or TASKS[self.task].result_kind == "text":
            raise ValueError(f"task is {self.task!r}; it must be a task that returns scores")
        if not isinstance(self.with_tiles, bool):
            raise ValueError(f"with_tiles is {self.with_tiles!r}; it must be true or false")
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


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """Read a calibration file; raise `CalibrationError`."""
    try:
        calibrations: list[Calibration] = []
        for row in json.loads(path.read_text(encoding="utf-8"))["calibrations"]:
            scores = tuple(map(float, row["scores"]))
            probabilities = tuple(map(float, row["probabilities"]))
            owner = (row["model"], row["checkpoint"], row["task"])
            with_tiles = row.get("with_tiles", False)
            calibrations.append(Calibration(*owner, scores, probabilities, with_tiles))
        return tuple(calibrations)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path} is not a valid calibration file: {error!r}") from error


def refine(
    result: Result, calibration: Calibration | None, min_score: float, nms_iou: float | None
) -> Result:
    """Return the objects that suppression keeps, with calibrated scores from `min_score`."""

    def refined(items: tuple[ItemT, ...]) -> tuple[ItemT, ...]:
        kept = items if nms_iou is None else suppress(items, nms_iou)
        if calibration is not None:
            kept = tuple(replace(item, score=calibration.probability(item.score)) for item in kept)
        return tuple(item for item in kept if item.score >= min_score)

    match result:
        case DetectionsResult():
            return replace(result, detections=refined(result.detections))
        case InstancesResult():
            return replace(result, instances=refined(result.instances))
        case TextRegionsResult():
            return replace(result, text_regions=refined(result.text_regions))
        case TextResult():
            return result


def suppress(items: tuple[ItemT, ...], max_iou: float) -> tuple[ItemT, ...]:
    """Return the items, in order, that overlap no better one of their label by more."""
    overlaps = _overlaps([box_of(item) for item in items]) > max_iou
    kept: list[int] = []
    for index in sorted(range(len(items)), key=lambda index: -items[index].score):
        rivals = [other for other in kept if _label(items[other]) == _label(items[index])]
        if not overlaps[index, rivals].any():
            kept.append(index)
    return tuple(items[index] for index in sorted(kept))


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
