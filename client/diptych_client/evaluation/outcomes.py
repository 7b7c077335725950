"""The results of a measure: the error of one answer, and the details of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """The error of an answer, from 0 to 1, with its kinds of error and its classes."""

    error: float
    kinds: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a line."""

    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts by true class (rows) and answered class (columns); the last of both is "none"."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Details:
    """Tables and curves of one model; values in hundredths like the metrics."""

    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    by_size: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, int] = field(default_factory=dict)
    confusion: Confusion | None = None
    precision_by_recall: Curve | None = None
    precision_by_score: Curve | None = None
    recall_by_score: Curve | None = None
    precision_by_recall_of: Mapping[str, Curve] = field(default_factory=dict)  # keyed by class
