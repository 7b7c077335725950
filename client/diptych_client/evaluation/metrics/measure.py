"""The measure that fits a truth."""

from typing import Protocol

from diptych_client.evaluation.answer_log import Prediction
from diptych_client.evaluation.calibration import ScoredAnswers
from diptych_client.evaluation.metrics.objects import ObjectsMeasure
from diptych_client.evaluation.metrics.outcome import Details, Outcome
from diptych_client.evaluation.metrics.phrases import PhrasesMeasure
from diptych_client.evaluation.metrics.texts import TextsMeasure
from diptych_client.evaluation.questionnaire import (
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    TextsTruth,
    Truth,
)
from diptych_client.evaluation.statistics import Metric


class Measure(Protocol):
    """The answers of one model against the truth, added one by one."""

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        """Count an answer and return how wrong it is."""
        ...

    def metrics(self) -> list[Metric]:
        """Return the metrics, the most important first."""
        ...

    def details(self) -> Details:
        """Return tables and curves."""
        ...

    def scored(self) -> ScoredAnswers | None:
        """Return the scores of the answers; None if they have none to calibrate."""
        ...


def measure_for(truth: Truth, task: str, names: ClassNames) -> Measure:
    """Return an empty measure for this kind of truth."""
    match truth:
        case ObjectsTruth():
            return ObjectsMeasure(names)
        case PhrasesTruth():
            return PhrasesMeasure()
        case TextsTruth():
            return TextsMeasure(task)
