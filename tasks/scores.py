"""Scores of a result's objects: suppression, calibration, minimum score, proved thresholds.

A calibration is fitted by `diptych evaluate --calibrate` for one task of one checkpoint; its file:

    {"calibrations": [{"model": …, "checkpoint": sha256, "task": …,
                       "with_tiles": false, "min_object_share": 0.1,
                       "scores": […], "probabilities": […],
                       "images": {"precision": …, "mean": base64, "components": base64,
                                  "variances": […], "residual_variance": 0.1, "distances": […]}}]}

`with_tiles`, which may be missing, is true if it holds for answers about images in tiles.
`min_object_share`, which may be missing or null, is the size of the smallest object that the model
still finds, as a share of the side of its input. `tiles: auto` makes the tiles so small.

`images`, which may be missing or null, describes for which images it holds. An image's embedding is
the mean of its features (C). Its Mahalanobis distance from `mean`, in little-endian float32, by the
K `components`, in float16, is compared with `distances`, those of images that fitted none of these.
The share of them as far away is its familiarity, a conformal p-value (arXiv 2104.08279): one in a
hundred such images has less than 0.01.

In the same file or another one are proofs:

    {"proofs": [{"model": …, "checkpoint": sha256, "precision": …, "calibration": sha256 or "",
                 "fields": {"task": …, …}, "min_precision": 0.95, "confidence": 0.95,
                 "min_score": 0.6, "max_labels": 4, "num_images": 300}]}

A proof says from which score on an object is right often enough. `diptych annotate --labelled
--thresholds` proves it on labelled images, for one model in one precision, with its calibration,
and for the other fields of a request, such as the labels. An image in which more than `max_labels`
objects have the score is not part of the proof: none of its objects is kept.
"""

import base64
import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    FailFast,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from tasks.errors import CheckpointFileError, first_problem, shown
from tasks.results import FoundObject, Result, with_objects
from tasks.table import TASKS
from tasks.tiles.merging import near_pairs

SCORE_DIGITS = 4  # after the point, of scores that leave the service

MIN_FAMILIARITY = 0.01  # a calibration holds for images from here on
_MAX_ROWS = 1000  # a file
_MAX_BASE64_CHARS = 4_000_000

ObjectT = TypeVar("ObjectT", bound=FoundObject)


def _with_scores(task_id: str) -> str:
    if task_id not in TASKS or TASKS[task_id].result_kind == "text":
        raise ValueError(f"{shown(task_id)} is not a task that returns scores")
    return task_id


def _about_scores(fields: Mapping[str, object]) -> Mapping[str, object]:
    _with_scores(str(fields.get("task")))
    return fields


_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_OpenShare = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_Points = Annotated[tuple[_Share, ...], Field(min_length=1), FailFast()]
_Variance = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Floats = NDArray[np.float32]


def _decoded(dtype: str, encoded: object) -> _Floats:
    if not isinstance(encoded, str) or len(encoded) > _MAX_BASE64_CHARS:
        raise ValueError(f"not base64 of at most {_MAX_BASE64_CHARS} characters")
    return np.frombuffer(base64.b64decode(encoded, validate=True), dtype).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class ImageStatistics:
    """Mean and covariance of the embeddings of a calibration's images."""

    precision: str  # encoder's and decoder's, as the service lists it
    mean: Annotated[_Floats, PlainValidator(partial(_decoded, "<f4"))] = field(repr=False)
    components: Annotated[_Floats, PlainValidator(partial(_decoded, "<f2"))] = field(repr=False)
    variances: Annotated[tuple[_Variance, ...], FailFast()]  # one a component
    residual_variance: _Variance  # every other direction has it
    # increasing; with fewer than 100, no image could be below MIN_FAMILIARITY
    distances: Annotated[tuple[_Distance, ...], Field(min_length=100), FailFast()]

    def __post_init__(self) -> None:
        if not 0 < len(self.mean) * len(self.variances) == len(self.components):
            sizes = f"{len(self.mean)} means and {len(self.variances)} variances"
            raise ValueError(f"{len(self.components)} numbers of components for {sizes}")

    def familiarity(self, embedding: str) -> float | None:
        """Return that of an image; None without an embedding, as older runners send none."""
        vector = np.frombuffer(base64.b64decode(embedding), "<f4")
        if len(vector) != len(self.mean):
            return None
        offsets = vector - self.mean
        projections = self.components.reshape(-1, len(offsets)) @ offsets
        residual = max(0.0, float(offsets @ offsets - projections @ projections))
        square = float(np.sum(projections**2 / self.variances)) + residual / self.residual_variance
        distance = math.sqrt(square) if square < math.inf else math.inf  # NaN is far away
        return 1 - bisect_left(self.distances, distance) / (1 + len(self.distances))


def is_unfamiliar(familiarity: float | None) -> bool:
    """Return True if a calibration does not hold for an image; it does where it is unknown."""
    return familiarity is not None and familiarity < MIN_FAMILIARITY


@dataclass(frozen=True, slots=True)
class Calibration:
    """The probability that an object is right by its score, piecewise linear."""

    model: str
    checkpoint: str  # sha256, hexadecimal, as in the manifest of the artifacts
    task: Annotated[str, AfterValidator(_with_scores)]
    scores: _Points  # increasing
    probabilities: _Points  # non-decreasing
    with_tiles: StrictBool = False
    # share of the side of the model's input
    min_object_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    images: ImageStatistics | None = None

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"{len(self.scores)} scores for {len(self.probabilities)} probabilities"
            )
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
    fields: Annotated[Mapping[str, object], AfterValidator(_about_scores)]  # except the image
    min_precision: _OpenShare
    confidence: _OpenShare
    min_score: _Share
    max_labels: Annotated[int, Field(ge=1)]
    num_images: Annotated[int, Field(ge=1)]  # labelled ones, on which it is proved


class _ScoresFile(TypedDict, total=False):
    # FailFast: else a file of a few MB makes millions of problems
    calibrations: Annotated[tuple[Calibration, ...], Field(max_length=_MAX_ROWS), FailFast()]
    proofs: Annotated[tuple[Proof, ...], Field(max_length=_MAX_ROWS), FailFast()]


_FILES = TypeAdapter(_ScoresFile)


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
    """Return the SHA-256 of the calibrations that a model's scores depend on; empty without any."""
    if not calibrations:
        return ""
    return hashlib.sha256(repr(sorted(calibrations.items())).encode()).hexdigest()


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """Read the calibrations of a file; raise `CheckpointFileError`."""
    return _read(path).get("calibrations", ())


def read_proofs(path: Path) -> tuple[Proof, ...]:
    """Read the proofs of a calibration file; raise `CheckpointFileError`."""
    return _read(path).get("proofs", ())


def _read(path: Path) -> _ScoresFile:
    try:
        document = _FILES.validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointFileError(f"cannot read the calibration file {path}: {error}") from error
    except ValidationError as error:
        problem = f"{path} is not a valid calibration file: {first_problem(error)}"
        raise CheckpointFileError(problem) from error
    if not document:
        problem = f"{path} is not a valid calibration file: it has no calibrations and no proofs"
        raise CheckpointFileError(problem)
    return document


def refine(
    result: Result, calibration: Calibration | None, min_score: float, nms_iou: float | None
) -> Result:
    """Return the objects that suppression keeps, with calibrated scores from `min_score`.

    An object without a score is kept.
    """
    objects = result.items
    if nms_iou is not None:
        objects = suppress(objects, nms_iou)
    refined: list[FoundObject] = []
    for item in objects:
        if item.score is None:
            refined.append(item)
            continue
        score = item.score if calibration is None else calibration.probability(item.score)
        if score >= min_score:
            refined.append(replace(item, score=score))
    return with_objects(result, refined)


def round_scores(result: Result) -> Result:
    """Return the objects with scores as they leave the service, after all that compares them."""
    rounded: list[FoundObject] = []
    for item in result.items:
        score = item.score
        rounded.append(item if score is None else replace(item, score=round(score, SCORE_DIGITS)))
    return with_objects(result, rounded)


def keep_proved(result: Result, proof: Proof) -> tuple[Result, Guarantee]:
    certain = [item for item in result.items if item.rank >= proof.min_score]
    proved = with_objects(result, certain)
    if len(proved.items) > proof.max_labels:
        proved = with_objects(result, ())
    guarantee = Guarantee(
        min_precision=proof.min_precision,
        confidence=proof.confidence,
        min_score=proof.min_score,
        max_labels=proof.max_labels,
        images=proof.num_images,
        left_out=len(result.items) - len(proved.items),
    )
    return proved, guarantee


def suppress(objects: tuple[ObjectT, ...], max_iou: float) -> tuple[ObjectT, ...]:
    """Return the objects, in order, that overlap no better one of their label by more."""
    order = sorted(range(len(objects)), key=lambda index: -objects[index].rank)
    corners = np.asarray([item.box for item in objects], dtype=np.float64).reshape(-1, 4)[order]
    _, labels = np.unique([objects[index].label for index in order], return_inverse=True)
    low = corners[:, :2]
    high = corners[:, 2:]
    areas = (high - low).prod(axis=1)
    are_kept = np.ones(len(objects), dtype=np.bool_)
    for better, worse in near_pairs(low, high, are_kept):
        sides = np.minimum(high[better], high[worse]) - np.maximum(low[better], low[worse])
        shared = np.clip(sides, 0, None).prod(axis=1)
        are_rivals = shared > max_iou * (areas[better] + areas[worse] - shared)
        are_rivals &= labels[better] == labels[worse]
        for one, other in np.column_stack([better, worse])[are_rivals].tolist():
            if are_kept[one]:
                are_kept[other] = False
    return tuple(objects[index] for index in sorted(compress(order, are_kept)))
