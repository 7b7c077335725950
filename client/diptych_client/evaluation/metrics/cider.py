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
from math import exp, hypot, log

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
    frequency = Counter[Ngram]()
    for own in references:
        frequency.update(set(chain.from_iterable(map(_ngrams, own))))
    log_images = log(max(len(references), 1))
    weights = {ngram: log_images - log(count) for ngram, count in frequency.items()}
    scores = []
    for caption, own in zip(captions, references, strict=True):
        counts = _ngrams(caption)
        found = [_similarity(counts, _ngrams(each), weights, log_images) for each in own]
        scores.append(10 * sum(found) / max(len(own), 1))
    return np.array(scores)


def _ngrams(text: str) -> Counter[Ngram]:
    found = words(text)
    counts = Counter[Ngram]()
    for n in range(1, MAX_N + 1):
        counts.update(zip(*(found[start:] for start in range(n)), strict=False))
    return counts


def _similarity(
    caption: Counter[Ngram],
    reference: Counter[Ngram],
    weights: Mapping[Ngram, float],
    unseen: float,
) -> float:
    """Return the mean clipped cosine over n, times the Gaussian penalty of unequal lengths."""
    num_bigrams: list[int] = []  # the lengths, as coco-caption counts
    total = 0.0
    for n in range(1, MAX_N + 1):
        vectors = []
        for counts in (caption, reference):
            own = {ngram: count for ngram, count in counts.items() if len(ngram) == n}
            vectors.append({each: own[each] * weights.get(each, unseen) for each in own})
            if n == 2:
                num_bigrams.append(sum(own.values()))
        a, b = vectors
        product = sum(min(value, b[ngram]) * b[ngram] for ngram, value in a.items() if ngram in b)
        total += product / (hypot(*a.values()) * hypot(*b.values()) or 1)
    difference = num_bigrams[0] - num_bigrams[1]
    return exp(-(difference**2) / (2 * _SIGMA**2)) * total / MAX_N
