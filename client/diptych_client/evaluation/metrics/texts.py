"""Texts, by task: CER and WER by jiwer, exact text, ANLS, VQA accuracy, CIDEr.

Of several references, error rates take the nearest. The rate of a dataset is all edits over all
characters or words.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jiwer
import numpy as np
from rapidfuzz.distance import Levenshtein

from diptych_client.evaluation.answer_log import Prediction
from diptych_client.evaluation.metrics.cider import cider_scores
from diptych_client.evaluation.metrics.outcome import Details, Outcome
from diptych_client.evaluation.questionnaire import TextsTruth, Truth
from diptych_client.evaluation.statistics import Floats, Metric, Ratio

ANLS_THRESHOLD = 0.5
NUM_VQA_ANSWERS = 10

_ARTICLES = {"a", "an", "the"}
_NUMBERS = dict(
    zip(("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
         "ten"),
        ("0", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"), strict=True)
)  # fmt: skip
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_<>@`?!,:|-]""")


def normalized(text: str) -> str:
    """Return the text with single spaces."""
    return " ".join(text.split())


def vqa_normalized(text: str) -> str:
    """Return an answer as VQA compares it: lower case, no articles, digits, no punctuation.

    Source: GT-Vision-Lab/VQA, vqaEval.py. Instead of its table of contractions, apostrophes are
    removed on both sides.
    """
    text = _COMMA_IN_NUMBER.sub("", text.lower().replace("'", ""))
    words = _PUNCTUATION.sub(" ", _PERIOD.sub("", text)).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, accepted: Sequence[str]) -> float:
    """Return min(annotators with this answer / 3, 1), averaged over all subsets but one.

    Source: Antol et al., 2015, arXiv 1505.00468, section 4. With fewer answers than VQA's ten: 1 if
    it is among them.
    """
    own = vqa_normalized(answer)
    others = [vqa_normalized(each) for each in accepted]
    if len(others) < NUM_VQA_ANSWERS:
        return float(own in others)
    count = others.count(own)
    return float(np.mean([min((count - (each == own)) / 3, 1) for each in others]))


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Return 1 - NL of the nearest, 0 if NL >= 0.5 (Biten et al., 2019, 1905.13648, eq. 1)."""
    own = answer.lower()
    nearest = min((_distance(own, each.lower()) for each in accepted), default=1.0)
    return 1 - nearest if nearest < ANLS_THRESHOLD else 0.0


def _distance(text: str, reference: str) -> float:
    """Return the edits by the length of the longer text."""
    return Levenshtein.normalized_distance(normalized(text), normalized(reference))


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits between a text and its reference, and the length of the reference."""

    num_edits: int
    length: int


def character_edits(reference: str, text: str) -> Edits:
    return _edits(jiwer.process_characters(normalized(reference), normalized(text)))


def word_edits(reference: str, text: str) -> Edits:
    return _edits(jiwer.process_words(normalized(reference), normalized(text)))


def _edits(found: jiwer.CharacterOutput | jiwer.WordOutput) -> Edits:
    removed = found.substitutions + found.deletions
    return Edits(removed + found.insertions, removed + found.hits)


@dataclass(slots=True)
class TextsMeasure:
    """One model's texts."""

    task: str
    texts: list[str] = field(default_factory=list)
    references: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, TextsTruth)
        text = prediction.text or ""
        self.texts.append(text)
        self.references.append(truth.texts)
        is_exact = normalized(text) in map(normalized, truth.texts)
        error = 0.0 if is_exact else min(_distance(text, each) for each in truth.texts)
        return Outcome(error, frozenset({"exact" if is_exact else "other text"}))

    def metrics(self) -> list[Metric]:
        """Return the metrics of the task, the most important first."""
        pairs = list(zip(self.texts, self.references, strict=True))
        exact = _mean("exact", [float(normalized(t) in map(normalized, r)) for t, r in pairs])
        if self.task == "captioning":
            return [_mean("CIDEr", cider_scores(self.texts, self.references)), exact]
        if self.task == "visual_question_answering":
            vqa = _mean("VQA accuracy", [vqa_accuracy(text, accepted) for text, accepted in pairs])
            return [vqa, _mean("ANLS", [anls(text, accepted) for text, accepted in pairs]), exact]
        return [_rate("CER", character_edits, pairs), _rate("WER", word_edits, pairs), exact]

    def details(self) -> Details:
        return Details()

    def scored(self) -> None:
        return None


def _mean(name: str, values: Sequence[float] | Floats) -> Metric:
    numerators = np.asarray(values, dtype=np.float64)
    return Metric(name, Ratio(numerators, np.ones_like(numerators)))


def _rate(
    name: str, edits: Callable[[str, str], Edits], pairs: Sequence[tuple[str, Sequence[str]]]
) -> Metric:
    numerators = np.zeros(len(pairs))
    denominators = np.zeros(len(pairs))
    for index, (text, references) in enumerate(pairs):
        found = [edits(reference, text) for reference in references]
        nearest = min(found, key=lambda each: each.num_edits)
        numerators[index] = nearest.num_edits
        denominators[index] = nearest.length
    return Metric(name, Ratio(numerators, denominators), is_error=True)
