"""A proof by labelled images about the labels of others, and the labels that it accepts.

The answers to a sample of the other images fix the rules that are tested (guarantee.py) before a
true label is compared.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from diptych_client.annotate.consensus import Agreement
from diptych_client.annotate.guarantee import (
    Promise,
    Proved,
    Scored,
    Unproved,
    candidates,
    common_count,
    decide,
    decide_review,
    num_needed_at_best,
)
from diptych_client.annotate.journal import Record
from diptych_client.annotate.judging import Tolerance, Truth, judge
from diptych_client.annotate.proposals import (
    NEVER,
    agreement,
    min_confidence,
    proposed,
    regions_of,
)
from diptych_client.evaluation.questionnaire import ObjectsTruth
from diptych_client.long_runs import RunError
from diptych_client.results import TextRegionsResult

Records = tuple[Record, ...]  # the answers to one image, one of each model

OTHER_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # wrong labels, for the service
_REVIEW_QUANTILES = np.arange(1, 20) / 20


@dataclass(frozen=True, slots=True)
class Promises:
    """Promises about the accepted labels, and about the review list if it is asked for."""

    wrong: Promise
    missed: Promise | None
    tolerance: Tolerance


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Proved rules of the accepted labels and of the review list."""

    accepting: Proved
    reviewing: Proved | None
    tolerance: Tolerance
    others: tuple[Proved, ...] = ()  # accepted labels with other shares of wrong ones

    def accept(self, records: Records) -> Agreement:
        """Return the boxes of an image that are accepted, and those of the review list."""
        found = agreement(records, self.tolerance.min_iou, self._least(records))
        shown = -math.inf if self.reviewing is None else self.reviewing.rule.min_confidence
        rest = tuple(each for each in found.differing if each[1].score >= shown)
        return replace(found, differing=rest)

    def accept_text(self, records: Records) -> Record | None:
        """Return the record of an accepted text, or of a model's accepted text regions."""
        first = records[0]
        if (regions := regions_of(records)) is None:
            return None if self.left_texts(records) else first
        least = self._least(records)
        accepted = TextRegionsResult(tuple(each for each in regions if each.score >= least))
        return replace(first, answer=replace(first.answer, result=accepted))

    def left_texts(self, records: Records) -> list[float]:
        """Return the confidences of the text or text regions that are not accepted."""
        least = self._least(records)
        proposals = proposed(records, self.tolerance.min_iou)
        return [each.confidence for each in proposals if each.confidence < least]

    def _least(self, records: Records) -> float:
        return min_confidence(proposed(records, self.tolerance.min_iou), self.accepting.rule)

    def sentences(self) -> list[str]:
        """Return what is proved, in words."""
        promise = self.accepting.promise
        rule = self.accepting.rule
        said = [
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
            said.append(
                f"at most {_percent(promise.max_share)} of the objects are in neither list,"
                f" with {_percent(promise.confidence)} confidence, in images with at most"
                f" {rule.max_labels} objects: the review list has boxes with a score of at least"
                f" {rule.min_confidence:.3f}"
            )
        return said

    def document(self) -> dict[str, object]:
        """Return what is proved, as JSON."""
        reviewing = None if self.reviewing is None else asdict(self.reviewing)
        proved = {"accepting": asdict(self.accepting), "reviewing": reviewing}
        return proved | {"tolerance": asdict(self.tolerance)}

    def proofs(self) -> list[dict[str, object]]:
        """Return the proved thresholds as the service reads them, but for model and request."""
        found: dict[float, dict[str, object]] = {}
        for each in (*self.others, self.accepting):
            precision = round(1 - each.promise.max_share, 6)
            found[precision] = {
                "min_precision": precision,
                "confidence": each.promise.confidence,
                "min_score": each.rule.min_confidence,
                "max_labels": each.rule.max_labels,
                "num_images": each.num_images,
            }
        return [found[precision] for precision in sorted(found)]


def refused(records: Records, tolerance: Tolerance) -> Agreement:
    """Return all boxes of an image as its review list."""
    return agreement(records, tolerance.min_iou, NEVER)


def check_enough(truths: Sequence[Truth], promise: Promise) -> None:
    """Raise `RunError` if so few labelled images prove nothing, even without a wrong label."""
    counts = [len(each.objects) if isinstance(each, ObjectsTruth) else 1 for each in truths]
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
    labelled: Sequence[tuple[Records, Truth]], sample: Sequence[Records], promises: Promises
) -> Guarantee:
    """Choose what is accepted; raise `RunError` if nothing is proved."""
    if not labelled:
        raise RunError("no labelled image was answered: failures.jsonl has the errors")
    tolerance = promises.tolerance
    confidences = []
    for records in sample:
        proposals = proposed(records, tolerance.min_iou)
        confidences.append([each.confidence for each in proposals])
    of_sample = Scored.of(confidences)
    judged = [judge(records, truth, tolerance) for records, truth in labelled]
    labels = Scored.of([each.confidences for each in judged])
    is_right = np.concatenate([each.is_right for each in judged]).astype(bool)
    tested = candidates(of_sample)
    accepting = decide(labels, is_right, tested, promises.wrong)
    if isinstance(accepting, Unproved):
        raise RunError(_problem(accepting, "labels are wrong"))
    shares = [replace(promises.wrong, max_share=share) for share in OTHER_SHARES]
    found = [decide(labels, is_right, tested, each) for each in shares]
    others = tuple(each for each in found if isinstance(each, Proved))
    if promises.missed is None:
        return Guarantee(accepting, None, tolerance, others)
    objects = Scored.of([each.found_scores for each in judged])
    scores = [0.0]
    if len(of_sample.scores):
        scores += np.unique(np.quantile(of_sample.scores, _REVIEW_QUANTILES)).tolist()
    is_any = np.ones(len(of_sample.scores), dtype=bool)
    max_objects = common_count(of_sample.counts(is_any))
    reviewing = decide_review(objects, max_objects, scores, promises.missed)
    if isinstance(reviewing, Unproved):
        raise RunError(_problem(reviewing, "objects are in neither list"))
    return Guarantee(accepting, reviewing, tolerance, others)


def _problem(unproved: Unproved, what: str) -> str:
    promise = unproved.promise
    hint = "no number of images like these is enough: allow more, or choose another model"
    if unproved.num_needed is not None:
        hint = f"about {unproved.num_needed} images like these are needed"
    return (
        f"{unproved.num_images} labelled images prove no threshold: {_percent(unproved.share)} of"
        f" all {what}; asked were at most {_percent(promise.max_share)} with"
        f" {_percent(promise.confidence)} confidence; {hint}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
