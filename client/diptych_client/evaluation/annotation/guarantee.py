"""Rules that accept labels so that at most a given share of the accepted ones is wrong.

A box is right if a true object of its label has at least the requested IoU with it, and no box of a
higher confidence took this object; of a crowd any number is right. IoU is that of the masks where
both have one. A text is right if its character error rate is at most the requested one, for
questions if it equals a true one as VQA compares answers. A text region is right if it is so equal
to a line of the true text that no region of a higher confidence took.

A rule accepts labels from a confidence on; an image with more than `max_labels` such labels is
reviewed as a whole. The labels of one image depend on each other. With W wrong ones among the A
accepted labels of an image, the share is below s if the mean of W - s A over images is below 0,
which statistics.py tests by betting.

Answers to other images fix the rules before a true label is read. Each rule is tested once, in the
order of coverage, with several starts (Angelopoulos et al., 2021, Learn then Test, arXiv
2110.01052, section 4.2). A start has a part of the error level. A proved rule passes its level on
to the next one, another one loses it (fallback: Wiens, 2003, Pharmaceutical Statistics 2).
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from rapidfuzz.distance import Levenshtein

from diptych_client.evaluation.annotation.consensus import (
    NEVER,
    Agreement,
    Label,
    Records,
    agreement,
    is_whole,
)
from diptych_client.evaluation.dataset import LabelledImage, TrueObject
from diptych_client.evaluation.objects import Flags, encoded_mask, run_lengths, xywh
from diptych_client.evaluation.questions import QUESTIONS, TEXTS, Job, ObjectsTruth, TextsTruth
from diptych_client.evaluation.statistics import log_wealth
from diptych_client.evaluation.texts import normalized, vqa_normalized
from diptych_client.geometry import ImageSize
from diptych_client.long_runs import RunError
from diptych_client.matching import SAME_OBJECT_IOU, Floats
from diptych_client.results import Instance, TextResult, box_of, items_of, label_of, text_of

Truth = ObjectsTruth | TextsTruth
ByImage = Sequence[Sequence[float]]  # scores of the labels or objects of each image

NOT_FOUND = -math.inf  # the score of an object without a box
_PHRASES = ("phrase_grounding", "instance_segmentation")

_COVERAGES = np.arange(1, 21) / 20
_STARTS: Mapping[float, float] = {0.4: 0.2, 0.8: 0.3, 1.0: 0.5}  # error level, by coverage
_COMMON_COUNT = 0.99  # share of images with at most `max_labels`
_OTHER_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # wrong labels, for the service
_REVIEW_QUANTILES = np.arange(1, 20) / 20

_SHIFT_LEVEL = 0.03
_MIN_OTHERS = 8  # images that can be told apart
_NUM_PERMUTATIONS = 1999
_MAX_LABELLED = 1000
_MAX_LABELS = 16
_NUM_EXAMPLES = 5
_DECIMALS = 9  # the order of a sum must not look like a difference
_SEED = 0


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The least IoU of a right box or mask, and the largest character error rate of a text."""

    min_iou: float = SAME_OBJECT_IOU
    max_cer: float = 0.0


@dataclass(frozen=True, slots=True)
class JudgedImage:
    """The confidence of each label of an image, and whether it is right.

    The score of an object is the best one of its boxes, accepted or not; `NOT_FOUND` without any.
    """

    confidences: tuple[float, ...]
    is_right: tuple[bool, ...]
    object_scores: tuple[float, ...] = ()

    @property
    def wrong_confidences(self) -> list[float]:
        return [self.confidences[index] for index in np.flatnonzero(~np.array(self.is_right, bool))]


def truth_of(labelled: LabelledImage, job: Job) -> Truth | None:
    """Return the true labels for a job, or None if the image has none of its kind."""
    parameters = job.parameters
    if job.task == QUESTIONS:
        answers: list[str] = []
        for question in labelled.questions:
            if question.question.casefold() == (parameters.question or "").casefold():
                answers += question.answers
        return TextsTruth(tuple(answers)) if answers else None
    if job.task == "captioning":
        return None if labelled.captions is None else TextsTruth(labelled.captions)
    if job.task in TEXTS:
        if labelled.text is None or labelled.region not in (None, parameters.region):
            return None
        return TextsTruth((labelled.text,))
    objects = list(labelled.objects or ())
    if job.task in _PHRASES and labelled.phrases:
        objects = []
        for phrase in labelled.phrases:
            if phrase.box_xyxy is not None:
                objects.append(TrueObject(phrase.label, phrase.box_xyxy, phrase.segmentation))
    elif labelled.objects is None:
        return None
    labels = {label.casefold() for label in job.requested_labels()}
    if parameters.phrase:
        labels.add(parameters.phrase.casefold())
    if labels:
        objects = [true for true in objects if true.label.casefold() in labels]
    return ObjectsTruth(tuple(objects))


def judge_labels(records: Records, truth: Truth, tolerance: Tolerance) -> JudgedImage:
    agreed = agreement(records, tolerance.min_iou, 0.0)
    if isinstance(truth, TextsTruth):
        overlaps = _text_overlaps(agreed, truth, tolerance)
        is_crowd = np.zeros(overlaps.shape[1], dtype=bool)
        return JudgedImage(agreed.confidences, _are_right(agreed, overlaps, is_crowd, tolerance))
    boxes = [*agreed.accepted, *map(itemgetter(1), agreed.differing)]
    overlaps = _overlaps(boxes, truth.objects, records[0].answer.image)
    scores = np.array(list(map(attrgetter("score"), boxes)))[:, None]
    hit_scores = np.where(overlaps >= tolerance.min_iou, scores, NOT_FOUND)
    object_scores = hit_scores.max(axis=0, initial=NOT_FOUND)
    is_crowd = np.array(list(map(attrgetter("is_crowd"), truth.objects)), dtype=bool)
    are_right = _are_right(agreed, overlaps, is_crowd, tolerance)
    return JudgedImage(agreed.confidences, are_right, tuple(object_scores[~is_crowd].tolist()))


def _are_right(
    agreed: Agreement, overlaps: Floats, is_crowd: Flags, tolerance: Tolerance
) -> tuple[bool, ...]:
    """Return which labels have a true one: the surest takes the one that it overlaps most."""
    is_right = [False] * len(agreed.accepted)
    order = np.argsort(-np.array(agreed.confidences), kind="stable")
    for index in order.tolist():
        if (overlaps[index] >= tolerance.min_iou).any():
            is_right[index] = True
            taken = int(np.argmax(overlaps[index]))
            if not is_crowd[taken]:
                overlaps[:, taken] = -1
    return tuple(is_right)


def _text_overlaps(agreed: Agreement, truth: TextsTruth, tolerance: Tolerance) -> Floats:
    """Return 1 where a text is right, else -1: of a whole text, or of regions and lines."""
    answer = agreed.records[0].answer
    if is_whole(agreed.records):
        texts = [text_of(answer.result) or ""]
        true_texts = list(truth.texts)
    else:
        texts = list(map(attrgetter("text"), agreed.accepted))
        true_texts = list(chain.from_iterable(map(str.splitlines, truth.texts)))
    overlaps = np.full((len(texts), len(true_texts)), -1.0)
    for row, text in enumerate(texts):
        for column, true_text in enumerate(true_texts):
            if _is_right(text, true_text, answer.task, tolerance.max_cer):
                overlaps[row, column] = 1
    return overlaps


def _is_right(text: str, true_text: str, task: str, max_cer: float) -> bool:
    if task == QUESTIONS:
        return vqa_normalized(text) == vqa_normalized(true_text)
    num_edits = Levenshtein.distance(normalized(true_text), normalized(text))
    return num_edits <= max_cer * len(normalized(true_text))


def _overlaps(boxes: Sequence[Label], objects: Sequence[TrueObject], image: ImageSize) -> Floats:
    """Return the IoU, (boxes, objects); -1 where the labels differ.

    A box without a label has that of every object.
    """
    if not boxes or not objects:
        return np.zeros((len(boxes), len(objects)))
    labels = np.array([box.label.casefold() for box in boxes], dtype=object)[:, None]
    names = np.array([true.label.casefold() for true in objects], dtype=object)
    have_masks = all(isinstance(box, Instance) for box in boxes)
    if have_masks and all(true.segmentation is not None for true in objects):
        answered = [encoded_mask(box.to_mask(image)) for box in boxes]
        expected = [run_lengths(true.segmentation, image) for true in objects]
    else:
        answered = list(map(xywh, map(attrgetter("box_xyxy"), boxes)))
        expected = list(map(xywh, map(attrgetter("box_xyxy"), objects)))
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
    """Labels from `min_confidence` on are accepted, of images with at most `max_labels` of them."""

    min_confidence: float
    max_labels: int


class Shares:
    """Parts and wholes of each image under a rule, none of an image with more than `max_labels`.

    The parts are wrong among accepted labels, or missed among true objects. `start` is the part of
    the error level that starts with the rule.
    """

    def __init__(self, rule: Rule, start: float, parts: Floats, wholes: Floats) -> None:
        is_common = wholes <= rule.max_labels
        self.rule = rule
        self.start = start
        self.parts = parts * is_common
        self.wholes = wholes * is_common

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


def candidates(pilot: ByImage) -> dict[Rule, float]:
    """Return rules of growing coverage, with the part of the error level that starts with each."""
    descending = sorted(chain.from_iterable(pilot), reverse=True) or [0.0]
    starts: dict[float, float] = {}
    for coverage in _COVERAGES.tolist():
        confidence = descending[math.ceil(coverage * len(descending)) - 1]
        starts[confidence] = starts.get(confidence, 0.0) + _STARTS.get(coverage, 0.0)
    rules = {}
    for confidence, start in starts.items():
        rules[Rule(confidence, common_count(counts_from(pilot, confidence)))] = start
    return rules


def counts_from(scores: ByImage, least: float) -> Floats:
    """Return the number of scores of each image that are not below the least."""
    counts = np.zeros(len(scores))
    for index, image_scores in enumerate(scores):
        counts[index] = (np.asarray(image_scores) >= least).sum()
    return counts


def common_count(counts: Floats) -> int:
    """Return a number of labels that few images exceed."""
    if not len(counts):
        return 1
    return max(int(np.quantile(counts, _COMMON_COUNT, method="higher")), 1)


def last_proved(tested: Sequence[Shares], promise: Promise) -> Shares | None:
    """Return the last rule whose hypothesis "the share is exceeded" is rejected, by fallback."""
    s = promise.max_share
    excesses = []  # W - s A of each image; its mean is negative if the share is below s
    highest = []
    for shares in tested:
        excesses.append((1 - s) * shares.parts - s * (shares.wholes - shares.parts))
        highest.append((1 - s) * shares.rule.max_labels)
    wealths = log_wealth(np.stack(excesses, axis=1), np.array(highest)).tolist()
    level = 0.0
    proved = None
    for shares, wealth in zip(tested, wealths, strict=True):
        level += shares.start * (1 - promise.confidence)
        if level and wealth >= -math.log(level):
            proved = shares
        else:
            level = 0.0
    return proved


def decide(
    judged: Sequence[JudgedImage], rules: Mapping[Rule, float], promise: Promise
) -> tuple[Proved, ...]:
    """Return the proved rules with the largest coverage: of the promise, then of other shares.

    Raise `RunError` if the promise is not proved.
    """
    confidences = list(map(attrgetter("confidences"), judged))
    wrong_confidences = list(map(attrgetter("wrong_confidences"), judged))
    tested = []
    for rule, start in rules.items():
        accepted = counts_from(confidences, rule.min_confidence)
        wrong = counts_from(wrong_confidences, rule.min_confidence)
        tested.append(Shares(rule, start, wrong, accepted))
    num_labels = sum(map(len, confidences))
    proofs = []
    for share in dict.fromkeys((promise.max_share, *_OTHER_SHARES)):
        proof_promise = replace(promise, max_share=share)
        best = last_proved(tested, proof_promise)
        if best is not None:
            coverage = float(best.wholes.sum()) / num_labels
            proofs.append(Proved(proof_promise, best.rule, best.share, coverage, len(judged)))
        elif not proofs:
            raise _unproved(tested[-1], promise, "labels are wrong")
    return tuple(proofs)


def decide_review(
    objects: ByImage, max_objects: int, scores: Sequence[float], promise: Promise
) -> Proved:
    """Return the shortest review list that is proved to miss at most the promised share of objects.

    The list holds boxes from a score on; the ascending `scores` are tested until one is not proved.
    Images with more than `max_objects` are not part of the promise. Raise `RunError` if none is.
    """
    wholes = counts_from(objects, NOT_FOUND)
    tested: list[Shares] = []
    for score in scores:
        missed = wholes - counts_from(objects, score)
        start = 0.0 if tested else 1.0
        tested.append(Shares(Rule(score, max_objects), start, missed, wholes))
    best = last_proved(tested, promise)
    if best is None:
        raise _unproved(tested[0], promise, "objects are in neither list")
    return Proved(promise, best.rule, best.share, 1 - best.share, len(objects))


def _unproved(shares: Shares, promise: Promise, claim: str) -> RunError:
    return RunError(
        f"{len(shares.parts)} labelled images prove no threshold: {_percent(shares.share)} of all"
        f" {claim}; asked were at most {promise}: label more images, allow more, or use two models"
    )


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Proved rules of the accepted labels and of the review list."""

    accepting: Proved
    reviewing: Proved | None
    tolerance: Tolerance
    others: tuple[Proved, ...] = ()  # accepted labels with other shares of wrong ones

    def accept(self, records: Records) -> Agreement:
        rule = self.accepting.rule
        agreed = agreement(records, self.tolerance.min_iou, rule.min_confidence)
        if len(agreed.accepted) > rule.max_labels:
            agreed = agreement(records, self.tolerance.min_iou, NEVER)
        if self.reviewing is None:
            return agreed
        least = self.reviewing.rule.min_confidence
        review = [entry for entry in agreed.differing if entry[1].score >= least]
        return replace(agreed, differing=tuple(review))

    def sentences(self) -> list[str]:
        accepting = self.accepting
        wrong = accepting.promise
        sentences = [
            f"at most {_percent(wrong.max_share)} of the accepted labels are wrong,"
            f" with {_percent(wrong.confidence)} confidence:"
            f" {accepting.num_images} labelled images prove it",
            f"accepted are labels with a confidence of at least {accepting.rule.min_confidence:.3f}"
            f" in images with at most {accepting.rule.max_labels} of them: about"
            f" {_percent(accepting.coverage)} of all labels",
        ]
        if self.reviewing is not None:
            missed = self.reviewing.promise
            rule = self.reviewing.rule
            sentences.append(
                f"at most {_percent(missed.max_share)} of the objects are in neither list,"
                f" with {_percent(missed.confidence)} confidence, in images with at most"
                f" {rule.max_labels} objects: the review list has boxes with a score of at least"
                f" {rule.min_confidence:.3f}"
            )
        return sentences

    def proofs(self) -> list[dict[str, Any]]:
        """Return the proved thresholds as the service reads them, but for model and request."""
        proofs: list[dict[str, Any]] = []
        for proof in (self.accepting, *self.others):
            row = {
                "min_precision": round(1 - proof.promise.max_share, 6),
                "confidence": proof.promise.confidence,
                "min_score": proof.rule.min_confidence,
                "max_labels": proof.rule.max_labels,
                "num_images": proof.num_images,
            }
            proofs.append(row)
        return sorted(proofs, key=itemgetter("min_precision"))


def prove(
    labelled: Sequence[tuple[Records, Truth]],
    pilot: Sequence[Records],
    tolerance: Tolerance,
    wrong: Promise,
    missed: Promise | None,
) -> Guarantee:
    """Choose what is accepted, and reviewed if missed objects have a promise.

    The answers to a pilot sample of the other images fix the rules that are tested. Raise
    `RunError` if a promise is not proved.
    """
    if not labelled:
        raise RunError("no labelled image is left: they failed, or fix the rules (pilot.json)")
    confidences = [agreement(records, tolerance.min_iou, 0.0).confidences for records in pilot]
    judged = [judge_labels(records, truth, tolerance) for records, truth in labelled]
    accepting, *others = decide(judged, candidates(confidences), wrong)
    reviewing = None
    if missed is not None:
        scores = [0.0]
        if pilot_scores := list(chain.from_iterable(confidences)):
            scores += np.unique(np.quantile(pilot_scores, _REVIEW_QUANTILES)).tolist()
        objects = list(map(attrgetter("object_scores"), judged))
        max_objects = common_count(counts_from(confidences, NOT_FOUND))
        reviewing = decide_review(objects, max_objects, scores, missed)
    return Guarantee(accepting, reviewing, tolerance, tuple(others))


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def appearance(records: Records, labels: Sequence[str]) -> list[float]:
    """Return the image's size, and of each answer the objects or the length of its text.

    Images that differ in their look alone have equal numbers. Objects have a number, a mean score,
    a mean size and the number of each label.
    """
    size = records[0].answer.image
    numbers = [math.log(size.width), math.log(size.height)]
    for record in records:
        result = record.answer.result
        if isinstance(result, TextResult):
            numbers.append(float(len(result.text)))
            continue
        items = items_of(result)
        names = [label_of(item).casefold() for item in items]
        numbers += [float(names.count(label.casefold())) for label in labels[:_MAX_LABELS]]
        boxes = np.array(list(map(box_of, items)), dtype=np.float64).reshape(-1, 4)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        scores = sum(map(attrgetter("score"), items))
        count = max(len(items), 1)
        numbers += [float(len(items)), scores / count, float(np.sqrt(np.abs(areas)).sum()) / count]
    return numbers


def differing_images(
    labelled: Sequence[Sequence[float]], others: Sequence[Sequence[float]]
) -> list[int]:
    """Return the others that differ most from the labelled ones; none if they are not told apart.

    The distance to the nearest of one half of the labelled images is compared with the distances of
    the other half: while all are exchangeable, permutations test whether the others' are larger.
    """
    compared = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    half = len(compared) // 2
    if not half or len(others) < _MIN_OTHERS:
        return []
    numbers = np.array([*compared, *others])
    scales = numbers.std(axis=0)
    vectors = numbers / np.where(scales > 0, scales, 1)
    nearest = []
    for vector in vectors[half:]:
        nearest.append(np.square(vectors[:half] - vector).sum(axis=1).min())
    distances = np.sqrt(nearest).round(_DECIMALS)
    num_usual = len(compared) - half
    ranks = np.searchsorted(np.sort(distances), distances)
    rng = np.random.default_rng(_SEED)
    permuted = rng.permuted(np.tile(ranks, (_NUM_PERMUTATIONS, 1)), axis=1)
    sums = permuted[:, num_usual:].sum(axis=1)
    num_as_high = int((sums >= ranks[num_usual:].sum()).sum())
    if num_as_high + 1 > _SHIFT_LEVEL * (_NUM_PERMUTATIONS + 1):
        return []
    furthest: list[int] = np.argsort(-distances[num_usual:])[:_NUM_EXAMPLES].tolist()
    return furthest
