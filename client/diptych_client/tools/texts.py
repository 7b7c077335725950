"""Texts, by task: CER and WER, exact text, ANLS, VQA accuracy, CIDEr-D.

Of several references, error rates take the nearest. The rate of a dataset is all edits over all
characters or words.

CIDEr-D: Vedantam et al., 2015, arXiv 1411.5726; coco-caption's cider_scorer.py. The kept package,
pycocoevalcap, is 104 MB with Java archives, and its tokenizer is one of them. Here words are runs
of letters, digits and apostrophes in lower case, which differs from Stanford's tokenizer in rare
cases. The test compares the scores with pycocoevalcap's of the same words.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import exp, hypot, log
from operator import itemgetter

import numpy as np
from rapidfuzz.distance import Levenshtein

from diptych_client.tools.matching import Floats
from diptych_client.tools.questions import Prediction, TextsTruth, Truth
from diptych_client.tools.statistics import Details, Metric, Outcome, mean, ratio

ANLS_THRESHOLD = 0.5
NUM_VQA_ANSWERS = 10
MAX_N = 4  # words of an n-gram
_SIGMA = 6.0

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_<>@`?!,:|-]""")

Ngrams = Counter[tuple[str, ...]]


def normalized(text: str) -> str:
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
    text = vqa_normalized(answer)
    annotated = list(map(vqa_normalized, accepted))
    if len(annotated) < NUM_VQA_ANSWERS:
        return float(text in annotated)
    count = annotated.count(text)
    return float(np.mean([min((count - (other == text)) / 3, 1) for other in annotated]))


def anls(answer: str, accepted: Sequence[str]) -> float:
    """Return 1 - NL of the nearest, 0 if NL >= 0.5 (Biten et al., 2019, 1905.13648, eq. 1)."""
    distances = [_distance(answer.lower(), text.lower()) for text in accepted]
    nearest = min(distances, default=1.0)
    return 1 - nearest if nearest < ANLS_THRESHOLD else 0.0


def _distance(text: str, reference: str) -> float:
    """Return the edits by the length of the longer text."""
    return Levenshtein.normalized_distance(normalized(text), normalized(reference))


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
        if normalized(text) in map(normalized, truth.texts):
            return Outcome(0.0, frozenset({"exact"}))
        error = min(_distance(text, reference) for reference in truth.texts)
        return Outcome(error, frozenset({"other text"}))

    def metrics(self) -> list[Metric]:
        """Return the metrics of the task, the most important first."""
        exact = self._mean("exact", lambda text, texts: normalized(text) in map(normalized, texts))
        if self.task == "captioning":
            return [Metric("CIDEr", mean(cider_scores(self.texts, self.references))), exact]
        if self.task == "visual_question_answering":
            return [self._mean("VQA accuracy", vqa_accuracy), self._mean("ANLS", anls), exact]
        return [self._rate("CER", normalized), self._rate("WER", str.split), exact]

    def details(self) -> Details:
        return Details()

    def _mean(self, name: str, score: Callable[[str, Sequence[str]], float]) -> Metric:
        return Metric(name, mean(list(map(score, self.texts, self.references))))

    def _rate(self, name: str, split: Callable[[str], Sequence[str]]) -> Metric:
        """Return the edits of characters or words by those of the nearest reference."""
        nearest = []
        for text, references in zip(self.texts, self.references, strict=True):
            edits = []
            for reference in map(split, references):
                edits.append((Levenshtein.distance(reference, split(text)), len(reference)))
            nearest.append(min(edits, key=itemgetter(0)))
        numerators, denominators = np.array(nearest, dtype=np.float64).reshape(-1, 2).T
        return Metric(name, ratio(numerators, denominators), is_error=True)


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Return the score of each caption; the weights of n-grams are those of all references."""
    frequency = Ngrams()
    for texts in references:
        frequency.update(set(chain.from_iterable(chain.from_iterable(map(_ngrams, texts)))))
    log_images = log(max(len(references), 1))
    weights: defaultdict[tuple[str, ...], float] = defaultdict(lambda: log_images)
    for ngram, count in frequency.items():
        weights[ngram] -= log(count)
    scores = []
    for caption, texts in zip(captions, references, strict=True):
        similarity = partial(_similarity, weights, _ngrams(caption))
        scores.append(10 * sum(map(similarity, map(_ngrams, texts))) / max(len(texts), 1))
    return np.array(scores)


def _ngrams(text: str) -> list[Ngrams]:
    """Return the counts of sequences of 1, 2, … words."""
    sequence = words(text)
    counts = []
    for n in range(1, MAX_N + 1):
        shifted = [sequence[start:] for start in range(n)]
        counts.append(Ngrams(zip(*shifted, strict=False)))
    return counts


def _similarity(
    weights: Mapping[tuple[str, ...], float], caption: list[Ngrams], reference: list[Ngrams]
) -> float:
    """Return the mean clipped cosine over n, times the Gaussian penalty of unequal lengths."""
    total = 0.0
    for counts, reference_counts in zip(caption, reference, strict=True):
        a = {ngram: count * weights[ngram] for ngram, count in counts.items()}
        b = {ngram: count * weights[ngram] for ngram, count in reference_counts.items()}
        product = sum(min(a[ngram], b[ngram]) * b[ngram] for ngram in a if ngram in b)
        total += product / (hypot(*a.values()) * hypot(*b.values()) or 1)
    difference = caption[1].total() - reference[1].total()  # lengths as coco-caption counts them
    return exp(-(difference**2) / (2 * _SIGMA**2)) * total / MAX_N
