"""Rules that accept boxes so that at most a given share of the accepted ones is wrong.

A box is right if a true object of its label has at least the requested IoU with it, and no box of a
higher confidence took this object; of a crowd any number is right. IoU is that of the masks where
both have one.

A rule accepts boxes from a confidence on; an image with more than `max_labels` such boxes is
reviewed as a whole. The boxes of one image depend on each other. With W wrong ones among the A
accepted boxes of an image, the share is below s if the mean of W - s A over images is below 0,
which statistics.py tests by betting.

Answers to other images fix the rules before a true label is read. Each rule is tested once, in the
order of coverage, with several starts (Angelopoulos et al., 2021, Learn then Test, arXiv
2110.01052, section 4.2). A start has a part of the error level. A proved rule passes its level on
to the next one, another one loses it (fallback: Wiens, 2003, Pharmaceutical Statistics 2). Classes
that are proved one by one share the level equally (Bonferroni: Dunn, 1961, Multiple comparisons
among means): none has to wait for another, as in a fixed sequence.

Near-duplicates of an image are not further evidence: the first one counts.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from diptych_client.conversion import DAMAGED, SENT
from diptych_client.datasets.dataset import LabelledImage, TrueObject
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Job
from diptych_client.geometry import ImageSize
from diptych_client.results import Instance
from diptych_client.tools.consensus import ANY, Agreement, Box, Records, find_agreement
from diptych_client.tools.matching import Floats
from diptych_client.tools.objects import Flags, encoded_mask, run_lengths, xywh
from diptych_client.tools.questions import ObjectsTruth
from diptych_client.tools.statistics import log_wealth

ALL = {ANY: 0.0}  # accepts every box
_PHRASES = ("phrase_grounding", "instance_segmentation")

_COVERAGES = np.arange(1, 21) / 20
_STARTS: Mapping[float, float] = {0.4: 0.2, 0.8: 0.3, 1.0: 0.5}  # error level, by coverage
_COMMON_COUNT = 0.99  # share of images with at most `max_labels`
_OTHER_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # wrong boxes, for the service

_SIDE_PX = 32
_SIMILAR = 0.98  # cosine; JPEG of quality 30 keeps .98, 99 % of drawn scenes are below .85
_BLOCK = 1000  # images
_SCORE_DIGITS = 4  # the service rounds scores
_HALF_DIGIT = 0.00005


def appearance(data: bytes) -> NDArray[np.float32]:
    """Return the tones of a thumbnail as a vector of mean 0 and length 1.

    It is 0 of an image of a single tone, and of one that cannot be opened: they are like no other.
    """
    try:
        with Image.open(io.BytesIO(data), formats=SENT) as image:
            image.draft("L", (4 * _SIDE_PX, 4 * _SIDE_PX))
            small = image.convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    except DAMAGED:
        return np.zeros(_SIDE_PX**2, np.float32)
    tones = np.asarray(small, np.float32).ravel()
    tones -= tones.mean()
    unit: NDArray[np.float32] = tones / max(float(np.linalg.norm(tones)), 1.0)
    return unit


def find_repeats(appearances: NDArray[np.float32]) -> Flags:
    """Return which images nearly repeat an earlier one; `appearances` is (I, D)."""
    is_repeat = np.zeros(len(appearances), dtype=bool)
    for start in range(0, len(appearances), _BLOCK):
        rows = slice(start, start + _BLOCK)
        is_similar = appearances[rows] @ appearances[: rows.stop].T >= _SIMILAR
        is_repeat[rows] = np.tril(is_similar, start - 1).any(axis=1)
    return is_repeat


@dataclass(frozen=True, slots=True)
class AgreedBoxes:
    """The boxes that models agree on in several images: confidences, and labels in lower case."""

    scores: Floats  # (N,)
    labels: NDArray[np.object_]  # (N,)
    images: NDArray[np.int64]  # (N,) index of the image
    num_images: int

    @classmethod
    def of(cls, agreements: Sequence[Agreement]) -> Self:
        scores: list[float] = []
        labels: list[str] = []
        images: list[int] = []
        for index, agreed in enumerate(agreements):
            scores += agreed.confidences
            labels += _labels(agreed)
            images += [index] * len(agreed.confidences)
        return cls(
            np.array(scores, dtype=float),
            np.array(labels, dtype=object),
            np.array(images, dtype=np.int64),
            len(agreements),
        )

    def where(self, mask: Flags) -> Self:
        return type(self)(self.scores[mask], self.labels[mask], self.images[mask], self.num_images)

    def has_label(self, label: str) -> Flags:
        is_same: Flags = (self.labels == label) | (label == ANY)
        return is_same

    def counts(self, least: float) -> Floats:
        """Return the number of scores of each image that are not below the least."""
        images = self.images[self.scores >= least]
        return np.bincount(images, minlength=self.num_images).astype(np.float64)


def _labels(agreed: Agreement) -> tuple[str, ...]:
    return tuple(box.label.casefold() for box in agreed.accepted)


def select_truth(labelled: LabelledImage, job: Job) -> ObjectsTruth | None:
    """Return the true objects for a job, or None if the image has no such labels."""
    parameters = job.parameters
    objects = labelled.objects
    if job.task in _PHRASES and labelled.phrases:
        boxes = []
        for phrase in labelled.phrases:
            if phrase.box_xyxy is not None:
                boxes.append(TrueObject(phrase.label, phrase.box_xyxy, phrase.segmentation))
        objects = tuple(boxes)
    if objects is None:
        return None
    labels = {label.casefold() for label in job.requested_labels()}
    if parameters.phrase:
        labels.add(parameters.phrase.casefold())
    if labels:
        objects = tuple(true for true in objects if true.label.casefold() in labels)
    return ObjectsTruth(objects)


def judge(agreed: Agreement, truth: ObjectsTruth, min_iou: float) -> tuple[bool, ...]:
    """Return whether each box that models agree on is right."""
    overlaps = _overlaps(agreed.accepted, truth.objects, agreed.records[0].answer.image)
    is_right = [False] * len(agreed.accepted)
    order = np.argsort(-np.array(agreed.confidences), kind="stable")
    for index in order.tolist():  # the surest takes the object that it overlaps most
        if (overlaps[index] >= min_iou).any():
            is_right[index] = True
            taken = int(np.argmax(overlaps[index]))
            if not truth.objects[taken].is_crowd:
                overlaps[:, taken] = -1
    return tuple(is_right)


def _overlaps(boxes: Sequence[Box], objects: Sequence[TrueObject], image: ImageSize) -> Floats:
    """Return the IoU, (boxes, objects); -1 where labels differ, which a box may lack."""
    if not boxes or not objects:
        return np.zeros((len(boxes), len(objects)))
    labels = np.array([box.label.casefold() for box in boxes], dtype=object)[:, None]
    names = np.array([true.label.casefold() for true in objects], dtype=object)
    instances = [box for box in boxes if isinstance(box, Instance)]
    if len(instances) == len(boxes) and all(true.segmentation is not None for true in objects):
        answered = [encoded_mask(box.to_mask(image)) for box in instances]  # one in memory
        expected = [run_lengths(true.segmentation, image) for true in objects]
    else:
        answered = [xywh(box.box_xyxy) for box in boxes]
        expected = [xywh(true.box_xyxy) for true in objects]
    is_crowd = [int(true.is_crowd) for true in objects]
    iou = np.asarray(coco_mask.iou(answered, expected, is_crowd))
    return np.where((labels == names) | (labels == ""), iou, -1.0)


@dataclass(frozen=True, slots=True)
class Promise:
    """At most this share, with this confidence."""

    max_share: float
    confidence: float

    def __str__(self) -> str:
        return f"{_percent(self.max_share)} with {_percent(self.confidence)} confidence"


@dataclass(frozen=True, slots=True)
class Rule:
    """Boxes from `min_confidence` on are accepted, of images with at most `max_labels` of them."""

    min_confidence: float
    max_labels: int


class Accepted:
    """The labels that a rule accepts of each image, and the wrong ones among them.

    `start` is the part of the error level that starts with the rule.
    """

    def __init__(
        self, rule: Rule, start: float, boxes: AgreedBoxes, wrong_boxes: AgreedBoxes
    ) -> None:
        num_boxes = boxes.counts(rule.min_confidence)
        is_common = num_boxes <= rule.max_labels
        self.rule = rule
        self.start = start
        self.num_wrong = wrong_boxes.counts(rule.min_confidence) * is_common
        self.num_labels = num_boxes * is_common
        self.share = float(self.num_wrong.sum() / max(self.num_labels.sum(), 1))


@dataclass(frozen=True, slots=True)
class Proved:
    """The proved rule of the largest coverage, with its figures on the labelled images."""

    promise: Promise
    rule: Rule
    share: float
    coverage: float
    num_images: int


def choose_rules(pilot: AgreedBoxes) -> dict[Rule, float]:
    """Return rules of growing coverage, with the part of the error level that starts with each."""
    descending = sorted(pilot.scores.tolist(), reverse=True) or [0.0]
    starts: dict[float, float] = {}
    for coverage in _COVERAGES.tolist():
        confidence = descending[math.ceil(coverage * len(descending)) - 1]
        starts[confidence] = starts.get(confidence, 0.0) + _STARTS.get(coverage, 0.0)
    rules = {}
    for confidence, start in starts.items():
        counts = pilot.counts(confidence) if pilot.num_images else [1]
        common = int(np.quantile(counts, _COMMON_COUNT, method="higher"))
        rules[Rule(confidence, max(common, 1))] = start
    return rules


def find_last_proved(tested: Sequence[Accepted], promise: Promise) -> Accepted | None:
    """Return the last rule whose hypothesis "the share is exceeded" is rejected, by fallback.

    Nothing is proved that the images, taken together, contradict.
    """
    s = promise.max_share
    excesses = []  # W - s A of each image; its mean is negative if the share is below s
    highest = []
    for accepted in tested:
        num_right = accepted.num_labels - accepted.num_wrong
        excesses.append((1 - s) * accepted.num_wrong - s * num_right)
        highest.append((1 - s) * accepted.rule.max_labels)
    wealths = log_wealth(np.stack(excesses, axis=1), np.array(highest)).tolist()
    level = 0.0
    proved = None
    for accepted, wealth in zip(tested, wealths, strict=True):
        level += accepted.start * (1 - promise.confidence)
        if level and wealth >= -math.log(level) and accepted.share <= s:
            proved = accepted
        else:
            level = 0.0
    return proved


def decide(
    boxes: AgreedBoxes, is_right: Flags, rules: Mapping[Rule, float], promise: Promise
) -> tuple[Proved, ...]:
    """Return the proved rules with the largest coverage: of the promise, then of other shares.

    Raise `RunError` if the promise is not proved.
    """
    wrong_boxes = boxes.where(~is_right)
    tested = [Accepted(rule, start, boxes, wrong_boxes) for rule, start in rules.items()]
    proofs = []
    for share in dict.fromkeys((promise.max_share, *_OTHER_SHARES)):
        proof_promise = replace(promise, max_share=share)
        best = find_last_proved(tested, proof_promise)
        if best is not None:
            coverage = float(best.num_labels.sum()) / len(boxes.scores)
            proofs.append(Proved(proof_promise, best.rule, best.share, coverage, boxes.num_images))
        elif not proofs:
            raise RunError(
                f"{boxes.num_images} labelled images prove no threshold:"
                f" {_percent(tested[-1].share)} of all labels are wrong; needed is at most"
                f" {promise}: label more images, allow more, or use two models"
            )
    return tuple(proofs)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Proved rules of the accepted boxes, by class or of `ANY`."""

    accepting: Mapping[str, Proved]
    min_iou: float
    others: tuple[Proved, ...] = ()  # accepted boxes with other shares of wrong ones
    # wrong and all accepted boxes of the labelled images, by class
    by_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unproved: tuple[str, ...] = ()  # classes

    def accept(self, records: Records) -> Agreement:
        min_scores = {label: proof.rule.min_confidence for label, proof in self.accepting.items()}
        agreed = find_agreement(records, self.min_iou, min_scores)
        labels = _labels(agreed)
        for label, proof in self.accepting.items():
            num_labels = len(labels) if label == ANY else labels.count(label)
            if num_labels > proof.rule.max_labels:
                del min_scores[label]
        return find_agreement(records, self.min_iou, min_scores)

    def sentences(self) -> list[str]:
        sentences = []
        for label, proof in self.accepting.items():
            wrong = proof.promise
            of_class = f" of {label}" if label else ""
            sentences += [
                f"at most {_percent(wrong.max_share)} of the accepted labels{of_class} are wrong,"
                f" with {_percent(wrong.confidence)} confidence:"
                f" {proof.num_images} labelled images prove it",
                f"accepted are labels{of_class} with a confidence of at least"
                f" {proof.rule.min_confidence:.3f} in images with at most {proof.rule.max_labels}"
                f" of them: about {_percent(proof.coverage)} of all labels{of_class}",
            ]
        if ANY not in self.accepting:
            sentences.append("the confidence is that of all these classes together")
        if self.unproved:
            sentences.append(f"nothing is accepted of {', '.join(self.unproved)}: not proved")
        shares = []
        for label, (num_wrong, num_accepted) in self.by_class.items():
            share = _percent(num_wrong / num_accepted)
            shares.append(f"{label or 'object'} {share} of {num_accepted}")
        return [*sentences, f"wrong on the labelled images, by class: {', '.join(shares)}"]

    def proofs(self) -> list[dict[str, Any]]:
        """Return the proved thresholds as the service reads them, but for model and request."""
        proofs: list[dict[str, Any]] = []
        for proof in (*self.accepting.values(), *self.others):
            row = {
                "min_precision": round(1 - proof.promise.max_share, 6),
                "confidence": proof.promise.confidence,
                "min_score": _lowest_score(proof.rule.min_confidence),
                "max_labels": proof.rule.max_labels,
                "num_images": proof.num_images,
            }
            proofs.append(row)
        return sorted(proofs, key=lambda row: row["min_precision"])


def _lowest_score(rounded: float) -> float:
    """Return the lowest score that the service rounds to this one, as it compares exact scores."""
    if rounded != round(rounded, _SCORE_DIGITS):
        return rounded  # this service does not round
    return max(0.0, round(rounded - _HALF_DIGIT, _SCORE_DIGITS + 1))


def prove(
    labelled: Sequence[tuple[Records, ObjectsTruth]],
    pilot: Sequence[Records],
    min_iou: float,
    promise: Promise,
    is_by_class: bool = False,
) -> Guarantee:
    """Choose what is accepted.

    The answers to a pilot sample of the other images fix the classes and rules that are tested.
    Raise `RunError` if the promise is not proved, of classes if it is of none.
    """
    if not labelled:
        raise RunError("no labelled image is left: they failed, or fix the rules (pilot.json)")
    sampled = AgreedBoxes.of([find_agreement(records, min_iou, ALL) for records in pilot])
    agreements = [find_agreement(records, min_iou, ALL) for records, _ in labelled]
    boxes = AgreedBoxes.of(agreements)
    judged: list[bool] = []
    for agreed, (_, truth) in zip(agreements, labelled, strict=True):
        judged += judge(agreed, truth, min_iou)
    is_right = np.array(judged, dtype=bool)
    classes = np.unique(sampled.labels).tolist() if is_by_class else [ANY]
    proofs = _proofs(classes, sampled, boxes, is_right, promise)
    accepting = {label: replace(first, promise=promise) for label, (first, *_) in proofs.items()}
    return Guarantee(
        accepting,
        min_iou,
        proofs.get(ANY, ())[1:],
        _counts_by_class(accepting, boxes, is_right),
        tuple(sorted(set(classes) - accepting.keys())),
    )


def _proofs(
    classes: Sequence[str],
    sampled: AgreedBoxes,
    boxes: AgreedBoxes,
    is_right: Flags,
    promise: Promise,
) -> dict[str, tuple[Proved, ...]]:
    """Return the proofs of each class, or of `ANY`; raise `RunError` if there are none."""
    level = (1 - promise.confidence) / max(len(classes), 1)
    proofs = {}
    errors = []
    for label in classes:
        rules = choose_rules(sampled.where(sampled.has_label(label)))
        is_class = boxes.has_label(label)
        of_class = replace(promise, confidence=1 - level)
        try:
            proofs[label] = decide(boxes.where(is_class), is_right[is_class], rules, of_class)
        except RunError as error:
            errors.append(error)
    if not proofs:
        raise next(iter(errors), RunError("no class is in a sample of the images"))
    return proofs


def _counts_by_class(
    accepting: Mapping[str, Proved], boxes: AgreedBoxes, is_right: Flags
) -> dict[str, tuple[int, int]]:
    """Return the wrong and all accepted boxes of each class."""
    counts = {}
    for label, proof in accepting.items():
        least = proof.rule.min_confidence
        is_class = boxes.has_label(label)
        is_common = boxes.where(is_class).counts(least) <= proof.rule.max_labels
        is_accepted = is_class & (boxes.scores >= least) & is_common[boxes.images]
        for name in np.unique(boxes.labels[is_accepted]).tolist():
            is_name = is_accepted & (boxes.labels == name)
            counts[name] = (int((is_name & ~is_right).sum()), int(is_name.sum()))
    return counts


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
