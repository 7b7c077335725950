"""Rules that accept labels so that at most a given share of the accepted ones is wrong.

A rule accepts labels from a confidence on; an image with more than `max_labels` such labels is
reviewed as a whole. The share is a ratio of sums over images, and the labels of one image depend on
each other. With W wrong ones among the A accepted labels of an image, the share is below s if the
mean of W - s A over images is below 0, which statistics.py tests by betting.

Answers to other images fix the rules before a true label is read. Each rule is tested once, in the
order of coverage, with several starts (Angelopoulos et al., 2021, Learn then Test, arXiv
2110.01052, section 4.2). A start has a part of the error level. A proved rule passes its level on
to the next one, another one loses it (the fallback procedure: Wiens, 2003, Pharmaceutical
Statistics 2). Knows no files and no requests.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from diptych_client.evaluation.annotation.consensus import (
    NEVER,
    Agreement,
    Records,
    agreement,
    proposals_of,
    regions_of,
)
from diptych_client.evaluation.annotation.judging import Tolerance, Truth, judge_labels
from diptych_client.evaluation.job import Record
from diptych_client.evaluation.questions import ObjectsTruth
from diptych_client.evaluation.statistics import log_wealth, num_images_needed
from diptych_client.long_runs import RunError
from diptych_client.matching import Floats
from diptych_client.results import TextRegionsResult

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]

_COVERAGES = np.arange(1, 21) / 20
_STARTS: Mapping[float, float] = {0.4: 0.2, 0.8: 0.3, 1.0: 0.5}  # error level, by coverage
_COMMON_COUNT = 0.99  # share of images with at most `max_labels`
_OPTIMISTIC_COUNTS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_OTHER_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # wrong labels, for the service
_REVIEW_QUANTILES = np.arange(1, 20) / 20


@dataclass(frozen=True, slots=True)
class Promise:
    """At most this share, with this confidence."""

    max_share: float
    confidence: float

    @property
    def level(self) -> float:
        """Return the probability with which the promise may be broken."""
        return 1 - self.confidence

    def __str__(self) -> str:
        return f"{_percent(self.max_share)} with {_percent(self.confidence)} confidence"


@dataclass(frozen=True, slots=True)
class Promises:
    """Promises about the accepted labels, and about the review list if one is requested."""

    wrong: Promise
    missed: Promise | None
    tolerance: Tolerance


@dataclass(frozen=True, slots=True)
class Scored:
    """Labels or objects of several images, flat: the index of each one's image, and its score."""

    num_images: int
    images: Indices
    scores: Floats

    @classmethod
    def of(cls, scores_by_image: Sequence[Sequence[float]]) -> Self:
        sizes = [len(scores) for scores in scores_by_image]
        images = np.repeat(np.arange(len(sizes)), sizes)
        scores = np.array(list(chain.from_iterable(scores_by_image)), dtype=np.float64)
        return cls(len(sizes), images, scores)

    def counts(self, is_chosen: Flags) -> Floats:
        """Return the number of chosen ones of each image."""
        counts = np.bincount(self.images[is_chosen], minlength=self.num_images)
        return counts.astype(np.float64)

    def all_counts(self) -> Floats:
        return self.counts(np.ones(len(self.scores), dtype=bool))


@dataclass(frozen=True, slots=True)
class Rule:
    """Labels from `min_confidence` on are accepted, of images with at most `max_labels` of them."""

    min_confidence: float
    max_labels: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule to be tested, and the part of the error level that starts with it."""

    rule: Rule
    start: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Parts and wholes of each image: wrong among accepted labels, or missed among true objects."""

    parts: Floats
    wholes: Floats
    max_whole: int

    def excess(self, max_share: float) -> Floats:
        """Return W - s A of each image; its mean is negative if the share is below s."""
        return (1 - max_share) * self.parts - max_share * (self.wholes - self.parts)

    def highest(self, max_share: float) -> float:
        """Return the largest possible excess of an image."""
        return (1 - max_share) * self.max_whole

    @property
    def share(self) -> float:
        return float(self.parts.sum() / max(self.wholes.sum(), 1))


@dataclass(frozen=True, slots=True)
class Proved:
    """The proved rule of the largest coverage, with its figures on the labelled images."""

    promise: Promise
    rule: Rule
    share: float
    coverage: float
    num_images: int


@dataclass(frozen=True, slots=True)
class Unproved:
    """No rule is proved; `share` is that of all labels. `num_needed` None: no number is enough."""

    promise: Promise
    share: float
    num_images: int
    num_needed: int | None

    def error(self, claim: str) -> RunError:
        hint = "no number of images like these is enough: allow more, or choose another model"
        if self.num_needed is not None:
            hint = f"about {self.num_needed} images like these are needed"
        return RunError(
            f"{self.num_images} labelled images prove no threshold: {_percent(self.share)} of all"
            f" {claim}; asked were at most {self.promise}; {hint}"
        )


def candidates(pilot: Scored) -> tuple[Candidate, ...]:
    """Return rules of growing coverage by the answers to images that are not labelled."""
    descending = -np.sort(-pilot.scores) if len(pilot.scores) else np.zeros(1)
    starts: dict[float, float] = {}
    for coverage in _COVERAGES.tolist():
        confidence = float(descending[math.ceil(coverage * len(descending)) - 1])
        starts[confidence] = starts.get(confidence, 0.0) + _STARTS.get(coverage, 0.0)
    rules = []
    for confidence, start in starts.items():
        max_labels = common_count(pilot.counts(pilot.scores >= confidence))
        rules.append(Candidate(Rule(confidence, max_labels), start))
    return tuple(rules)


def common_count(counts: Floats) -> int:
    """Return a number of labels that few images exceed."""
    if not len(counts):
        return 1
    return max(int(np.quantile(counts, _COMMON_COUNT, method="higher")), 1)


def accepted_shares(labels: Scored, is_right: Flags, rule: Rule) -> Shares:
    """Return the wrong and the accepted labels of each image under a rule."""
    is_accepted = labels.scores >= rule.min_confidence
    wholes = labels.counts(is_accepted)
    is_common = wholes <= rule.max_labels
    wrong = labels.counts(is_accepted & ~is_right)
    return Shares(wrong * is_common, wholes * is_common, rule.max_labels)


def decide(
    labels: Scored, is_right: Flags, tested: Sequence[Candidate], promise: Promise
) -> Proved | Unproved:
    """Return the rule with the largest coverage among those that are proved to keep the promise."""
    shares = [accepted_shares(labels, is_right, candidate.rule) for candidate in tested]
    starts = [candidate.start for candidate in tested]
    proved = _proved(shares, starts, promise)
    if proved:
        best = proved[-1]
        coverage = float(shares[best].wholes.sum()) / len(labels.scores)
        return Proved(promise, tested[best].rule, shares[best].share, coverage, labels.num_images)
    needed = []
    for start, rule_shares in zip(starts, shares, strict=True):
        if start:
            needed.append(_num_needed(rule_shares, promise.max_share, start * promise.level))
    return Unproved(promise, shares[-1].share, labels.num_images, _least(needed))


def decide_review(
    objects: Scored, max_objects: int, scores: Sequence[float], promise: Promise
) -> Proved | Unproved:
    """Return the shortest review list that is proved to miss at most the promised share of objects.

    Each object has the best score of a box of it, -inf without one. The list holds boxes from a
    score on; the ascending `scores` are tested in their order, until one is not proved. Images
    with more than `max_objects` are not part of the promise.
    """
    wholes = objects.all_counts()
    is_common = wholes <= max_objects
    shares = []
    for score in scores:
        missed = objects.counts(objects.scores < score)
        shares.append(Shares(missed * is_common, wholes * is_common, max_objects))
    proved = _proved(shares, [1.0] + [0.0] * (len(shares) - 1), promise)
    if not proved:
        needed = _num_needed(shares[0], promise.max_share, promise.level)
        return Unproved(promise, shares[0].share, objects.num_images, needed)
    best = proved[-1]
    share = shares[best].share
    return Proved(promise, Rule(scores[best], max_objects), share, 1 - share, objects.num_images)


def num_needed_at_best(counts: Floats, promise: Promise) -> int | None:
    """Return how many such images it takes if every true object is found and no label is wrong."""
    needed = []
    common = np.quantile(counts[counts > 0], _OPTIMISTIC_COUNTS, method="higher")
    for max_count in np.unique(common).tolist():
        wholes = counts * (counts <= max_count)
        shares = Shares(np.zeros_like(wholes), wholes, int(max_count))
        needed.append(_num_needed(shares, promise.max_share, promise.level))
    return _least(needed)


def _proved(shares: Sequence[Shares], starts: Sequence[float], promise: Promise) -> list[int]:
    """Return which hypotheses "the share is exceeded" are rejected, by the fallback procedure."""
    values = np.stack([tested.excess(promise.max_share) for tested in shares], axis=1)
    highest = np.array([tested.highest(promise.max_share) for tested in shares])
    log_wealths = log_wealth(values, highest).tolist()
    level = 0.0
    proved = []
    for index, start in enumerate(starts):
        level += start * promise.level
        if level and log_wealths[index] >= -math.log(level):
            proved.append(index)
        else:
            level = 0.0
    return proved


def _num_needed(shares: Shares, max_share: float, level: float) -> int | None:
    return num_images_needed(shares.excess(max_share), shares.highest(max_share), level)


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Proved rules of the accepted labels and of the review list."""

    accepting: Proved
    reviewing: Proved | None
    tolerance: Tolerance
    others: tuple[Proved, ...] = ()  # accepted labels with other shares of wrong ones

    def accept(self, records: Records) -> Agreement:
        """Return the boxes of an image that are accepted, and those of the review list."""
        agreed = agreement(records, self.tolerance.min_iou, self._min_confidence(records))
        least = -math.inf if self.reviewing is None else self.reviewing.rule.min_confidence
        review = [entry for entry in agreed.differing if entry[1].score >= least]
        return replace(agreed, differing=tuple(review))

    def accept_text(self, records: Records) -> Record | None:
        """Return the record of an accepted text, or of a model's accepted text regions."""
        first = records[0]
        regions = regions_of(records)
        if regions is None:
            return None if self.left_texts(records) else first
        least = self._min_confidence(records)
        accepted = TextRegionsResult(tuple(region for region in regions if region.score >= least))
        return replace(first, answer=replace(first.answer, result=accepted))

    def left_texts(self, records: Records) -> list[float]:
        """Return the confidences of the text or text regions that are not accepted."""
        least = self._min_confidence(records)
        confidences = _confidences(records, self.tolerance)
        return [confidence for confidence in confidences if confidence < least]

    def _min_confidence(self, records: Records) -> float:
        """Return the confidence from which labels of this image are accepted."""
        rule = self.accepting.rule
        confidences = _confidences(records, self.tolerance)
        num_labels = sum(confidence >= rule.min_confidence for confidence in confidences)
        return rule.min_confidence if num_labels <= rule.max_labels else NEVER

    def sentences(self) -> list[str]:
        promise = self.accepting.promise
        rule = self.accepting.rule
        sentences = [
            f"at most {_percent(promise.max_share)} of the accepted labels are wrong,"
            f" with {_percent(promise.confidence)} confidence:"
            f" {self.accepting.num_images} labelled images prove it",
            f"accepted are labels with a confidence of at least {rule.min_confidence:.3f} in images"
            f" with at most {rule.max_labels} of them: about"
            f" {_percent(self.accepting.coverage)} of all labels",
        ]
        if self.reviewing is not None:
            promise = self.reviewing.promise
            rule = self.reviewing.rule
            sentences.append(
                f"at most {_percent(promise.max_share)} of the objects are in neither list,"
                f" with {_percent(promise.confidence)} confidence, in images with at most"
                f" {rule.max_labels} objects: the review list has boxes with a score of at least"
                f" {rule.min_confidence:.3f}"
            )
        return sentences

    def document(self) -> dict[str, object]:
        reviewing = None if self.reviewing is None else asdict(self.reviewing)
        proofs = {"accepting": asdict(self.accepting), "reviewing": reviewing}
        return proofs | {"tolerance": asdict(self.tolerance)}

    def proofs(self) -> list[dict[str, object]]:
        """Return the proved thresholds as the service reads them, but for model and request."""
        by_precision: dict[float, dict[str, object]] = {}
        for proof in (*self.others, self.accepting):
            precision = round(1 - proof.promise.max_share, 6)
            by_precision[precision] = {
                "min_precision": precision,
                "confidence": proof.promise.confidence,
                "min_score": proof.rule.min_confidence,
                "max_labels": proof.rule.max_labels,
                "num_images": proof.num_images,
            }
        return [by_precision[precision] for precision in sorted(by_precision)]


def refused(records: Records, tolerance: Tolerance) -> Agreement:
    return agreement(records, tolerance.min_iou, NEVER)


def check_enough(truths: Sequence[Truth], promise: Promise) -> None:
    """Raise `RunError` if so few labelled images prove nothing, even without a wrong label."""
    counts = [len(truth.objects) if isinstance(truth, ObjectsTruth) else 1 for truth in truths]
    needed = None
    if any(counts):
        needed = num_needed_at_best(np.array(counts, dtype=np.float64), promise)
    if needed is None:
        raise RunError(f"there is no object in {len(counts)} labelled images: nothing was sent")
    if needed > len(counts):
        raise RunError(
            f"with {len(counts)} labelled images no threshold can be proved: at least about"
            f" {needed} are needed for at most {_percent(promise.max_share)} wrong with"
            f" {_percent(promise.confidence)} confidence, even if no label is wrong; nothing was"
            " sent"
        )


def prove(
    labelled: Sequence[tuple[Records, Truth]], pilot: Sequence[Records], promises: Promises
) -> Guarantee:
    """Choose what is accepted; raise `RunError` if nothing is proved.

    The answers to a pilot sample of the other images fix the rules that are tested.
    """
    if not labelled:
        raise RunError("no labelled image was answered: failures.jsonl has the errors")
    tolerance = promises.tolerance
    piloted = Scored.of([_confidences(records, tolerance) for records in pilot])
    judged = [judge_labels(records, truth, tolerance) for records, truth in labelled]
    labels = Scored.of([image.confidences for image in judged])
    is_right = np.concatenate([image.is_right for image in judged]).astype(bool)
    tested = candidates(piloted)
    accepting = decide(labels, is_right, tested, promises.wrong)
    if isinstance(accepting, Unproved):
        raise accepting.error("labels are wrong")
    others = []
    for share in _OTHER_SHARES:
        decision = decide(labels, is_right, tested, replace(promises.wrong, max_share=share))
        if isinstance(decision, Proved):
            others.append(decision)
    guarantee = Guarantee(accepting, None, tolerance, tuple(others))
    if promises.missed is None:
        return guarantee
    objects = Scored.of([image.object_scores for image in judged])
    scores = [0.0]
    if len(piloted.scores):
        scores += np.unique(np.quantile(piloted.scores, _REVIEW_QUANTILES)).tolist()
    max_objects = common_count(piloted.all_counts())
    reviewing = decide_review(objects, max_objects, scores, promises.missed)
    if isinstance(reviewing, Unproved):
        raise reviewing.error("objects are in neither list")
    return replace(guarantee, reviewing=reviewing)


def _confidences(records: Records, tolerance: Tolerance) -> list[float]:
    return [proposal.confidence for proposal in proposals_of(records, tolerance.min_iou)]


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
