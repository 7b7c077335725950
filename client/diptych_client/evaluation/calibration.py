"""Calibration of scores: the probability that an object is right, from a labelled dataset.

Isotonic regression by pooling adjacent violators (Zadrozny and Elkan, 2002, "Transforming
classifier scores into accurate multiclass probability estimates", section 3). SciPy has it too, but
would be the client's largest dependency. The file is what the service's setting DIPTYCH_CALIBRATION
takes.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from diptych_client.evaluation.statistics import Floats
from diptych_client.long_runs import RunError

MIN_ANSWERS = 200
MIN_OBJECTS = 200  # true ones, for their smallest size
_MIN_RECALL_SHARE = 0.95  # recall, as a share of the larger half's
_NUM_BINS = 15  # Guo et al., 2017, "On Calibration of Modern Neural Networks", section 4


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """Scores of answered objects, whether each is right, and the index of its sample."""

    scores: Floats
    is_right: NDArray[np.bool_]
    samples: NDArray[np.int64]
    is_calibrated: bool  # the service calibrated some of the scores
    # true objects: sizes as shares of the image's side, and whether each was found
    shares: Floats = field(default_factory=lambda: np.zeros(0))
    are_found: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, slots=True)
class CalibrationGap:
    """Expected calibration error, by bins of the score (Guo et al., 2017, section 2)."""

    answers: ScoredAnswers

    def value(self, weights: Floats) -> float:
        weight = weights[self.answers.samples]
        bins = np.minimum((self.answers.scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
        gaps = np.bincount(bins, weight * (self.answers.scores - self.answers.is_right), _NUM_BINS)
        return float(np.abs(gaps).sum() / weight.sum()) if weight.sum() else float("nan")


@dataclass(frozen=True, slots=True)
class Calibration:
    """One task of one checkpoint: points of a non-decreasing, piecewise linear function."""

    model: str
    checkpoint: str
    task: str
    with_tiles: bool  # holds for answers about images in tiles
    min_object_share: float | None  # `tiles: auto` makes the tiles so small
    num_answers: int
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]


def fit(
    model: str,
    checkpoint: str,
    task: str,
    answers: ScoredAnswers | None,
    with_tiles: bool = False,
) -> Calibration:
    """Fit the calibration of a model; raise `RunError` if its answers do not allow it."""
    if answers is None:
        raise RunError(f"--calibrate needs a task and a dataset with objects; {task} has none here")
    if answers.is_calibrated:
        raise RunError(already_calibrated(model, task))
    if len(answers.scores) < MIN_ANSWERS:
        raise RunError(
            f"--calibrate needs {MIN_ANSWERS} answered objects; {model} answered"
            f" {len(answers.scores)}"
        )
    scores, probabilities = isotonic(answers.scores, answers.is_right)
    smallest = None if with_tiles else min_object_share(answers.shares, answers.are_found)
    owner = (model, checkpoint, task, with_tiles, smallest)
    return Calibration(*owner, len(answers.scores), scores, probabilities)


def min_object_share(shares: Floats, are_found: NDArray[np.bool_]) -> float | None:
    """Return the size from which on a model finds nearly as many objects as of the larger half.

    It is None if the model finds the smallest objects so well: smaller ones may be found, too.
    """
    if len(shares) < MIN_OBJECTS:
        return None
    needed = _MIN_RECALL_SHARE * are_found[shares >= np.median(shares)].mean()
    sizes, recalls = isotonic(shares, are_found)
    index = int(np.searchsorted(recalls, needed))
    return sizes[index] if index > 0 else None


def already_calibrated(model: str, task: str) -> str:
    return (
        f"{model} answers {task} with calibrated scores, and --calibrate needs the original ones:"
        " start the service with DIPTYCH_CALIBRATION=off and choose another --out"
    )


def calibration_document(calibrations: Iterable[Calibration]) -> str:
    document = {"calibrations": [asdict(each) for each in calibrations]}
    return json.dumps(document, indent=1) + "\n"


def isotonic(
    scores: Floats, is_right: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the first and last score of each block of equal probability, with probabilities."""
    levels, index = np.unique(scores, return_inverse=True)
    weights = np.bincount(index)
    means = np.bincount(index, is_right) / weights
    blocks: list[tuple[float, float, float, float]] = []  # weight, mean, first and last score
    for level, weight, mean in zip(levels.tolist(), weights.tolist(), means.tolist(), strict=True):
        first = level
        while blocks and blocks[-1][1] >= mean:
            weight_before, mean_before, first, _ = blocks.pop()
            total = weight_before + weight
            mean = (weight_before * mean_before + weight * mean) / total
            weight = total
        blocks.append((weight, mean, first, level))
    points = {}
    for _, mean, first, last in blocks:
        points[first] = mean
        points[last] = mean
    return tuple(points), tuple(points.values())
