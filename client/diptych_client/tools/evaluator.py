"""The evaluation of one task: measures and agreement over all samples that every model answered.

Samples are read one by one from the answers; only numbers, and of labelled objects their boxes,
stay in memory.

Phrases: accuracy at IoU 0.5 of the box, and mean IoU of the mask, as for RefCOCO (Yu et al., 2016,
arXiv 1608.00272, section 5; big_vision, evaluators/proj/paligemma/transfers/segmentation.py). The
best scored answer to a phrase counts; none counts as IoU 0.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from operator import attrgetter
from statistics import fmean
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pycocotools import mask as coco_mask
from rapidfuzz.distance import Levenshtein

from diptych_client.datasets.dataset import LabelledImage, TruePhrase
from diptych_client.datasets.long_runs import RunError
from diptych_client.results import Instance, Item, Model
from diptych_client.tools.matching import SAME_OBJECT_IOU, Kind, LabelledBox, match, pairwise_iou
from diptych_client.tools.objects import ObjectsMeasure, encoded_mask, run_lengths
from diptych_client.tools.questions import (
    AnswerLog,
    ClassNames,
    Form,
    ObjectsTruth,
    PhrasesTruth,
    Prediction,
    Sample,
    TextsTruth,
    Truth,
)
from diptych_client.tools.statistics import (
    Details,
    Estimates,
    Metric,
    Outcome,
    estimates,
    mean,
    ratio,
)
from diptych_client.tools.texts import TextsMeasure

NUM_TRIAL_IMAGES = 20  # labelled images that decide in which form a model is asked for classes
_KIND_OF_BOTH: Mapping[Kind, str] = {
    "right": "found by both",
    "loosely placed": "found by both, loosely",
    "wrong class": "other label",
    "badly placed": "placed differently",
}


@dataclass(frozen=True, slots=True)
class JudgedPhrase:
    """The best answer to a phrase; an IoU is None where truth or answer lacks the shape."""

    item: Item | None
    box_iou: float | None
    mask_iou: float | None

    @property
    def kind(self) -> Kind:
        if self.item is None:
            return "missed"
        iou = self.box_iou if self.mask_iou is None else self.mask_iou
        return "right" if (iou or 0.0) >= SAME_OBJECT_IOU else "badly placed"


def judge_phrase(phrase: TruePhrase, prediction: Prediction) -> JudgedPhrase:
    name = phrase.label.casefold()
    answers = [item for item in prediction.items if item.label.casefold() == name]
    item = max(answers, key=lambda item: item.rank, default=None)
    box_iou = None
    mask_iou = None
    if phrase.box_xyxy is not None:
        boxes = [] if item is None else [item.box_xyxy]
        box_iou = float(pairwise_iou([phrase.box_xyxy], boxes).sum())
    if phrase.segmentation is not None and item is None:
        mask_iou = 0.0
    elif phrase.segmentation is not None and isinstance(item, Instance):
        true_mask = run_lengths(phrase.segmentation, prediction.image)
        mask = encoded_mask(item.to_mask(prediction.image))
        mask_iou = float(coco_mask.iou([mask], [true_mask], [0])[0, 0])
    return JudgedPhrase(item, box_iou, mask_iou)


@dataclass(slots=True)
class PhrasesMeasure:
    """One model's boxes and masks of phrases."""

    # of each sample: sum over its phrases, and their number
    box_hits: list[tuple[float, int]] = field(default_factory=list)
    mask_ious: list[tuple[float, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, PhrasesTruth)
        judged = [judge_phrase(phrase, prediction) for phrase in truth.objects]
        kinds = Counter[str](map(attrgetter("kind"), judged))
        boxes = []
        masks = []
        for phrase in judged:
            if phrase.box_iou is not None:
                boxes.append(float(phrase.box_iou >= SAME_OBJECT_IOU))
            if phrase.mask_iou is not None:
                masks.append(phrase.mask_iou)
        self.box_hits.append((sum(boxes), len(boxes)))
        self.mask_ious.append((sum(masks), len(masks)))
        self.kinds += kinds
        kind_of = {id(phrase.item): phrase.kind for phrase in judged}  # the best answer counts
        return Outcome(
            1 - kinds["right"] / max(len(judged), 1),
            frozenset(kinds),
            list(map(attrgetter("kind"), judged)),
            [kind_of.get(id(item), "answer") for item in prediction.items],
        )

    def metrics(self) -> list[Metric]:
        metrics = []
        for name, rows in (("mask mIoU", self.mask_ious), ("accuracy at IoU 0.5", self.box_hits)):
            numerators, denominators = np.array(rows, dtype=np.float64).reshape(-1, 2).T
            if denominators.any():
                metrics.append(Metric(name, ratio(numerators, denominators)))
        return metrics

    def details(self) -> Details:
        return Details(kinds=dict(self.kinds))


Measure = ObjectsMeasure | PhrasesMeasure | TextsMeasure


def measure_for(truth: Truth, task: str, names: ClassNames) -> Measure:
    match truth:
        case ObjectsTruth():
            return ObjectsMeasure(names)
        case PhrasesTruth():
            return PhrasesMeasure()
        case TextsTruth():
            return TextsMeasure(task)


def disagreement(
    models: tuple[str, str], names: ClassNames, first: Prediction, second: Prediction
) -> Outcome:
    """Return how much the answers of two models differ."""
    if first.text is not None:
        distance = Levenshtein.normalized_distance(first.text, second.text or "")
        return Outcome(distance, frozenset({"texts differ" if distance else "same text"}))
    pairs = match(labelled_boxes(names, first.items), labelled_boxes(names, second.items))
    credit = sum(map(attrgetter("credit"), pairs))
    num_boxes = len(first.items) + len(second.items)
    kind_of = {"missed": f"only {models[0]}", "extra": f"only {models[1]}", **_KIND_OF_BOTH}
    kinds = frozenset(kind_of[pair.kind] for pair in pairs)
    return Outcome(1 - 2 * credit / num_boxes if num_boxes else 0.0, kinds)


def labelled_boxes(names: ClassNames, items: Iterable[Item]) -> list[LabelledBox]:
    return [LabelledBox(names.label(item), item.box_xyxy) for item in items]


def run_record(
    url: str, settings: Mapping[str, Any], models: Iterable[Model], counts: Mapping[str, int]
) -> dict[str, str]:
    """Return date, service, options and models of a run, and the counts of what failed."""
    address = urlsplit(url)
    service = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"  # without credentials
    record = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "service": service}
    for name, value in {**settings, **+Counter(counts)}.items():  # counts above 0
        if value not in ("", None):  # 0 and False are options
            is_list = isinstance(value, list | tuple)
            record[name] = ",".join(map(str, value)) if is_list else str(value)
    for model in models:
        record[model.id] = f"{model.precision}, checkpoint {model.checkpoint}"
    return record


@dataclass(frozen=True, slots=True)
class RankedSample:
    """A sample in the gallery: how wrong the models are, and how much they differ."""

    sample_index: int
    error: float
    disagreement: float
    difference: float  # between the errors of the worst and the best model
    kinds: frozenset[str]

    @property
    def rank(self) -> tuple[float, float]:
        return (self.difference, self.error + self.disagreement)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All results of a run."""

    dataset: str
    task: str
    models: tuple[str, ...]
    num_images: int
    num_samples: int
    num_unanswered: int
    num_labelled: int
    seed: int
    measured: Estimates | None  # None without labels
    details: Mapping[str, Details]
    doubts: tuple[str, ...]  # reasons to give no verdict
    agreed: Estimates | None  # keyed by the title of two models; one model has none
    gallery: tuple[RankedSample, ...]
    run: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Evaluator:
    """Collects the predictions of all models, sample by sample."""

    log: AnswerLog
    models: tuple[str, ...]
    names: ClassNames
    measures: dict[str, Measure] = field(default_factory=dict)
    # of each two models, one per answered sample
    agreements: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    image_numbers: dict[str, int] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)  # one per answered sample
    labelled_images: list[int] = field(default_factory=list)  # one per answered sample with truth
    ranked: list[RankedSample] = field(default_factory=list)
    num_unanswered: int = 0
    # samples that are unlike the images of a model's calibration
    num_unfamiliar: Counter[str] = field(default_factory=Counter)
    truth_kind: type[Truth] | None = None

    def evaluate(
        self, dataset_name: str, samples: Sequence[Sample], seed: int, gallery: int
    ) -> Evaluation:
        """Return the results; the gallery has the samples that the models differ most on."""
        self.agreements = {pair: [] for pair in combinations(self.models, 2)}
        for index, sample in enumerate(samples):
            self._add(index, sample)
        metrics = {model: measure.metrics() for model, measure in self.measures.items()}
        details = {model: measure.details() for model, measure in self.measures.items()}
        agreed = {}
        for (first, second), scores in self.agreements.items():
            agreed[f"{first} and {second}"] = [Metric("agreement", mean(scores))]
        return Evaluation(
            dataset=dataset_name,
            task=self.log.task,
            models=self.models,
            num_images=len(self.image_numbers),
            num_samples=len(self.images),
            num_unanswered=self.num_unanswered,
            num_labelled=len(self.labelled_images),
            seed=seed,
            measured=estimates(metrics, self.labelled_images, seed) if metrics else None,
            details=details,
            doubts=self._doubts(details),
            agreed=estimates(agreed, self.images, seed) if agreed and self.images else None,
            gallery=tuple(heapq.nlargest(gallery, self.ranked, key=attrgetter("rank"))),
        )

    def _doubts(self, all_details: Mapping[str, Details]) -> tuple[str, ...]:
        doubts = []
        if all_details and are_numbers(self.names):
            doubts.append("the names of the classes are numbers, which --prompts can name")
        for model, details in all_details.items():
            kinds = Counter(details.kinds)
            has_objects = bool(kinds.keys() - {"extra"})
            if has_objects and not kinds["right"] + kinds["loosely placed"]:
                doubts.append(f"{model} found none of the labelled objects")
        return tuple(doubts)

    def _add(self, index: int, sample: Sample) -> None:
        predictions = {}
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            if prediction is None:
                self.num_unanswered += 1
                return
            predictions[model] = prediction
        self.num_unfamiliar.update(name for name in predictions if predictions[name].is_unfamiliar)
        image = self.image_numbers.setdefault(sample.image.name, len(self.image_numbers))
        self.images.append(image)
        differences = []
        for (first, second), scores in self.agreements.items():
            pair = (predictions[first], predictions[second])
            outcome = disagreement((first, second), self.names, *pair)
            differences.append(outcome)
            scores.append(1 - outcome.error)
        outcomes: list[Outcome] = []
        if sample.truth is not None:
            self.labelled_images.append(image)
            self._create_measures(sample.truth)
            for model, prediction in predictions.items():
                outcomes.append(self.measures[model].add(sample.truth, prediction))
        errors = list(map(attrgetter("error"), outcomes)) or [0.0]
        disagreements = list(map(attrgetter("error"), differences)) or [0.0]
        kinds = frozenset().union(*map(attrgetter("kinds"), outcomes or differences))
        spread = max(errors) - min(errors)
        rank = RankedSample(index, fmean(errors), fmean(disagreements), spread, kinds)
        self.ranked.append(rank)

    def _create_measures(self, truth: Truth) -> None:
        """Create the measures of the first truth; raise `RunError` for a truth of another kind."""
        self.truth_kind = self.truth_kind or type(truth)
        if self.truth_kind is not type(truth):
            raise RunError(f"{self.log.task} cannot measure phrases and objects in one run")
        for model in self.models if not self.measures else ():
            self.measures[model] = measure_for(truth, self.log.task, self.names)


def are_numbers(names: ClassNames) -> bool:
    return bool(names.class_of) and all(map(str.isdecimal, names.class_of))


def trial_of(samples: Iterable[Sample]) -> list[Sample]:
    """Return the first samples with objects of the classes."""
    trial = []
    for sample in samples:
        if isinstance(sample.truth, ObjectsTruth) and sample.truth.objects:
            trial.append(sample)
    return trial[:NUM_TRIAL_IMAGES]


def error_of(log: AnswerLog, sample: Sample, model: str, names: ClassNames) -> float | None:
    """Return the error of a model; None without an answer or a label."""
    prediction = log.prediction(sample, model)
    if prediction is None or sample.truth is None:
        return None
    return measure_for(sample.truth, log.task, names).add(sample.truth, prediction).error


def best_form(
    log: AnswerLog, trial: Sequence[Sample], model: str, names: ClassNames, forms: Sequence[Form]
) -> Form:
    """Return the form with the least error, over the samples with answers in all forms."""
    rows = []
    for form in forms:
        log.forms[model] = form
        rows.append([error_of(log, sample, model, names) for sample in trial])
    errors = np.array(rows, dtype=np.float64)  # (forms, samples), NaN without an answer
    totals = errors[:, np.isfinite(errors).all(axis=0)].sum(axis=1)
    return forms[int(totals.argmin())]


def drawn(images: Sequence[LabelledImage], number: int | None, seed: int) -> list[LabelledImage]:
    """Return at most `number` images by the seed, in their order."""
    count = len(images) if number is None else min(number, len(images))
    indices = random.Random(seed).sample(range(len(images)), count)
    return [images[index] for index in sorted(indices)]
