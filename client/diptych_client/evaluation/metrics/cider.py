"""CIDEr-D of captions (Vedantam et al., 2015, arXiv 1411.5726; coco-caption's cider_scorer.py).

Own code: the kept package, pycocoevalcap, is 104 MB with Java archives, and its tokenizer is one of
them. Here words are runs of letters, digits and apostrophes in lower case, which differs from
Stanford's tokenizer in rare cases. The test compares the scores with pycocoevalcap's of the same
words.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from math import exp, log, sqrt

import numpy as np

from diptych_client.evaluation.statistics import Floats

MAX_N = 4
_SIGMA = 6.0
_WORD = re.compile(r"[\w']+")

Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """Return the score of each caption; the weights of n-grams are those of all references."""
    counted = [[_ngrams(text) for text in own] for own in references]
    frequency = Counter(ngram for own in counted for ngram in set(chain.from_iterable(own)))
    log_images = log(max(len(references), 1))
    weights = {ngram: log_images - log(count) for ngram, count in frequency.items()}
    scores = []
    for caption, own in zip(captions, counted, strict=True):
        counts = _ngrams(caption)
        scores.append(
            10
            * sum(_similarity(counts, each, weights, log_images) for each in own)
            / max(len(own), 1)
        )
    return np.array(scores)


def _ngrams(text: str) -> Counter[Ngram]:
    found = words(text)
    return Counter(
        tuple(found[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(found) - n + 1)
    )


def _similarity(
    caption: Counter[Ngram],
    reference: Counter[Ngram],
    weights: Mapping[Ngram, float],
    unseen: float,
) -> float:
    """Return the mean over n of the clipped cosine, times the Gaussian penalty of the lengths'
    difference.
    """
    lengths = (
        sum(count for ngram, count in each.items() if len(ngram) == 2)
        for each in (caption, reference)
    )
    first, second = lengths  # in bigrams, as coco-caption counts
    penalty = exp(-((first - second) ** 2) / (2 * _SIGMA**2))
    total = 0.0
    for n in range(1, MAX_N + 1):
        a, b = (_vector(each, n, weights, unseen) for each in (caption, reference))
        norm = sqrt(sum(value**2 for value in a.values())) * sqrt(
            sum(value**2 for value in b.values())
        )
        product = sum(min(value, b[ngram]) * b[ngram] for ngram, value in a.items() if ngram in b)
        total += product / norm if norm else product
    return penalty * total / MAX_N


def _vector(
    counts: Counter[Ngram], n: int, weights: Mapping[Ngram, float], unseen: float
) -> dict[Ngram, float]:
    return {
        ngram: count * weights.get(ngram, unseen)
        for ngram, count in counts.items()
        if len(ngram) == n
    }
