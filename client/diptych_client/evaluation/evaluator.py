"""The evaluation of one task: measures and agreement over all samples that every model answered.

Samples are read one by one from the answers; only numbers, and of labelled objects their boxes,
stay in memory.

Phrases: accuracy at IoU 0.5 of the box, and mean IoU of the mask, as for RefCOCO. Source: Yu et
al., 2016, arXiv 1608.00272, section 5 (a box is right if IoU > 0.5); big_vision,
evaluators/proj/paligemma/transfers/segmentation.py (mean of the masks' IoU). The best scored answer
to a phrase counts; none counts as IoU 0.
"""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, combinations
from urllib.parse import urlsplit

import numpy as np
from pycocotools import mask as coco_mask
from rapidfuzz.distance import Levenshtein

from diptych_client.evaluation.dataset import Dataset, TruePhrase
from diptych_client.evaluation.objects import ObjectsMeasure, encoded_mask, run_lengths
from diptych_client.evaluation.questions import (
    WITHOUT_TILES,
    AnswerLog,
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Prediction,
    Sample,
    TextsTruth,
    Truth,
)
from diptych_client.evaluation.statistics import (
    Details,
    Estimates,
    Metric,
    Outcome,
    Ratio,
    estimates,
)
from diptych_client.evaluation.texts import TextsMeasure
from diptych_client.long_runs import FailureLog, RunError
from diptych_client.matching import SAME_OBJECT_IOU, Kind, LabelledBox, match, pairwise_iou
from diptych_client.requests import DEFAULT_OPTIONS, non_null_fields
from diptych_client.results import Instance, Item, Model, box_of, label_of

_MAX_SAMPLES = 1000  # that the requests of the report are taken from
_MAX_REQUESTS = 20
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


def judge_phrases(truth: PhrasesTruth, prediction: Prediction) -> list[JudgedPhrase]:
    judged = []
    for phrase in truth.phrases:
        name = phrase.phrase.casefold()
        answers = [item for item in prediction.items if label_of(item).casefold() == name]
        item = max(answers, key=lambda answer: answer.score, default=None)
        box_iou = None
        if phrase.box_xyxy is not None:
            boxes = [] if item is None else [box_of(item)]
            box_iou = float(pairwise_iou([phrase.box_xyxy], boxes).sum())
        judged.append(JudgedPhrase(item, box_iou, _mask_iou(phrase, item, prediction)))
    return judged


def _mask_iou(phrase: TruePhrase, item: Item | None, prediction: Prediction) -> float | None:
    if phrase.segmentation is None:
        return None
    if item is None:
        return 0.0
    if not isinstance(item, Instance):
        return None
    true_mask = run_lengths(phrase.segmentation, prediction.image)
    mask = encoded_mask(item.to_mask(prediction.image))
    return float(coco_mask.iou([mask], [true_mask], [0])[0, 0])


@dataclass(slots=True)
class PhrasesMeasure:
    """One model's boxes and masks of phrases; sums over the phrases of each sample."""

    # right, number of phrases with a box
    box_hits: list[tuple[float, int]] = field(default_factory=list)
    # sum of IoU, number of phrases with a mask
    mask_ious: list[tuple[float, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, PhrasesTruth)
        judged = judge_phrases(truth, prediction)
        boxes = [phrase.box_iou for phrase in judged if phrase.box_iou is not None]
        masks = [phrase.mask_iou for phrase in judged if phrase.mask_iou is not None]
        kinds = [phrase.kind for phrase in judged]
        self.box_hits.append((float(sum(iou >= SAME_OBJECT_IOU for iou in boxes)), len(boxes)))
        self.mask_ious.append((sum(masks), len(masks)))
        self.kinds.update(kinds)
        share_right = kinds.count("right") / max(len(kinds), 1)
        return Outcome(1 - share_right, frozenset(kinds))

    def metrics(self) -> list[Metric]:
        metrics = []
        for name, rows in (("mask mIoU", self.mask_ious), ("accuracy at IoU 0.5", self.box_hits)):
            numerators, denominators = np.array(rows, dtype=np.float64).reshape(-1, 2).T
            if denominators.any():
                metrics.append(Metric(name, Ratio(numerators, denominators)))
        return metrics

    def details(self) -> Details:
        return Details(kinds=self.kinds)

    def scored(self) -> None:
        return None


Measure = ObjectsMeasure | PhrasesMeasure | TextsMeasure


def measure_for(truth: Truth, task: str, names: ClassNames, by_size: bool = False) -> Measure:
    match truth:
        case ObjectsTruth():
            return ObjectsMeasure(names, by_size)
        case PhrasesTruth():
            return PhrasesMeasure()
        case TextsTruth():
            return TextsMeasure(task)


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """Objects of a class: found by both with IoU >= 0.5, by one only, or with another label."""

    both: int
    only_first: int
    only_second: int
    other_label: int


@dataclass(slots=True)
class PairAgreement:
    """Two models' answers without labels, added one by one."""

    first: str
    second: str
    names: ClassNames
    scores: list[float] = field(default_factory=list)  # one per sample, 0 to 1
    kinds_by_class: defaultdict[str, Counter[Kind]] = field(
        default_factory=lambda: defaultdict(Counter)
    )

    @property
    def title(self) -> str:
        return f"{self.first} and {self.second}"

    def add(self, first: Prediction, second: Prediction) -> Outcome:
        """Count two answers and return how much they differ."""
        if first.text is not None:
            distance = Levenshtein.normalized_distance(first.text, second.text or "")
            self.scores.append(1 - distance)
            return Outcome(distance, frozenset({"texts differ" if distance else "same text"}))
        a = [LabelledBox(self.names.label(item), box_of(item)) for item in first.items]
        b = [LabelledBox(self.names.label(item), box_of(item)) for item in second.items]
        names = {"missed": f"only {self.first}", "extra": f"only {self.second}", **_KIND_OF_BOTH}
        kinds = set[str]()
        credit = 0.0
        for pair in match(a, b):
            label = a[pair.truth].label if pair.truth is not None else b[pair.answer or 0].label
            self.kinds_by_class[label][pair.kind] += 1
            kinds.add(names[pair.kind])
            credit += pair.credit
        disagreement = 1 - 2 * credit / (len(a) + len(b)) if a or b else 0.0
        self.scores.append(1 - disagreement)
        labels = frozenset(box.label for box in (*a, *b))
        return Outcome(disagreement, frozenset(kinds), labels)

    def metric(self) -> Metric:
        """Return the mean: of boxes F1 over COCO's IoU thresholds, of texts 1 - edit distance."""
        scores = np.array(self.scores)
        return Metric("agreement", Ratio(scores, np.ones_like(scores)))

    def by_class(self) -> Mapping[str, ClassAgreement]:
        agreements = {}
        for label, kinds in sorted(self.kinds_by_class.items()):
            both = kinds["right"] + kinds["loosely placed"]
            other_label = kinds["wrong class"] + kinds["badly placed"]
            agreements[label] = ClassAgreement(both, kinds["missed"], kinds["extra"], other_label)
        return agreements


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request without an answer."""

    image: str
    model: str
    error: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run in its report: date, service, models, options, and what was left out.

    `settings` decide the results, so that reports with equal ones replace each other.
    """

    date: str  # UTC, ISO 8601
    settings: Mapping[str, object]
    models: tuple[Mapping[str, str], ...]
    asked: tuple[str, ...]  # parameters of the first different requests
    num_failed: int = 0
    failed: tuple[FailedRequest, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        url: str,
        settings: Mapping[str, object],
        models: Sequence[Model],
        samples: Sequence[Sample],
        failures: FailureLog,
        left_out: Mapping[str, int],
    ) -> "RunRecord":
        address = urlsplit(url)
        host = address.netloc.rpartition("@")[2]  # without credentials
        names = [model.id for model in models]
        properties = []
        for model in models:
            build = {"precision": model.precision, "checkpoint": model.checkpoint}
            properties.append({"id": model.id, "family": model.family, **build})
        requests: dict[str, None] = {}
        for sample in samples[:_MAX_SAMPLES]:
            for parameters in sample.requests:
                fields = non_null_fields(parameters, DEFAULT_OPTIONS)
                parts = [f"{name}={_typed(value)}" for name, value in fields.items()]
                requests[", ".join(parts)] = None
        failed = []
        for row in failures.first:
            failed.append(FailedRequest(str(row["image"]), str(row["model"]), str(row["message"])))
        return cls(
            datetime.now(UTC).isoformat(timespec="seconds"),
            {"service": f"{address.scheme}://{host}", **settings, "models": names},
            tuple(properties),
            tuple(requests)[:_MAX_REQUESTS],
            failures.num_failures,
            tuple(failed),
            dict(left_out),
        )

    def rows(self) -> list[tuple[str, str]]:
        rows = [("date", self.date)]
        rows += [(name, _typed(value)) for name, value in self.settings.items()]
        for model in self.models:
            build = f"{model['precision']}, checkpoint {model['checkpoint'][:12]}"
            rows.append((model["id"], build))
        rows.append(("requests", "; ".join(self.asked)))
        counts = [f"{count} x {name}" for name, count in sorted(self.left_out.items())]
        rows.append(("problems of the dataset", ", ".join(counts)))
        return [(name, value) for name, value in rows if value]


def _typed(value: object) -> str:
    """Return a value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of a sample with the run's concurrency, and what the run answered in a second."""

    latency_p50_ms: float
    latency_p95_ms: float
    images_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class RankedSample:
    """A sample in the gallery: how wrong the models are, and how much they differ."""

    sample_index: int
    error: float
    disagreement: float
    difference: float  # between the errors of the worst and the best model
    kinds: frozenset[str]
    classes: frozenset[str]


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
    speed: Mapping[str, Speed]
    agreed: Estimates | None  # keyed by the title of two models; one model has none
    agreement_by_class: Mapping[str, Mapping[str, ClassAgreement]]
    gallery: tuple[RankedSample, ...]
    run: RunRecord | None = None


def sampled(dataset: Dataset, num_images: int | None, seed: int) -> Dataset:
    """Return the dataset with at most `num_images` images, drawn by the seed, in their order."""
    if num_images is None or num_images >= len(dataset.images):
        return dataset
    chosen = sorted(random.Random(seed).sample(range(len(dataset.images)), num_images))
    return replace(dataset, images=[dataset.images[i] for i in chosen])


@dataclass(slots=True)
class Evaluator:
    """Collects the predictions of all models, sample by sample."""

    log: AnswerLog
    models: tuple[str, ...]
    names: ClassNames
    measures: dict[str, Measure] = field(default_factory=dict)
    agreements: list[PairAgreement] = field(default_factory=list)
    times: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    image_numbers: dict[str, int] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)  # one per answered sample
    labelled_images: list[int] = field(default_factory=list)  # one per answered sample with truth
    # heap, the least wrong first
    ranked: list[tuple[float, float, int, RankedSample]] = field(default_factory=list)
    num_unanswered: int = 0
    truth_kind: type[Truth] | None = None

    def evaluate(
        self, dataset_name: str, samples: Sequence[Sample], seed: int, gallery: int
    ) -> Evaluation:
        """Return the results; the gallery has the samples that the models differ most on."""
        for first, second in combinations(self.models, 2):
            self.agreements.append(PairAgreement(first, second, self.names))
        self.times = {model: [] for model in self.models}
        for index, sample in enumerate(samples):
            self._add(index, sample, gallery)
        metrics = {model: measure.metrics() for model, measure in self.measures.items()}
        agreed = {pair.title: [pair.metric()] for pair in self.agreements}
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
            details={model: measure.details() for model, measure in self.measures.items()},
            speed={model: _speed(rows) for model, rows in self.times.items() if rows},
            agreed=estimates(agreed, self.images, seed) if agreed and self.images else None,
            agreement_by_class={pair.title: pair.by_class() for pair in self.agreements},
            gallery=tuple(ranked for *_, ranked in sorted(self.ranked, reverse=True)),
        )

    def _add(self, index: int, sample: Sample, gallery: int) -> None:
        predictions = {}
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            if prediction is None:
                self.num_unanswered += 1
                return
            predictions[model] = prediction
        image = self.image_numbers.setdefault(sample.image.name, len(self.image_numbers))
        self.images.append(image)
        for model, prediction in predictions.items():
            times = (prediction.latency_s, prediction.occupied_s, prediction.num_tokens)
            self.times[model].append(times)
        differences = []
        for pair in self.agreements:
            differences.append(pair.add(predictions[pair.first], predictions[pair.second]))
        outcomes: list[Outcome] = []
        if sample.truth is not None:
            self.labelled_images.append(image)
            self._check_truth(sample, sample.truth)
            for model, prediction in predictions.items():
                outcomes.append(self.measures[model].add(sample.truth, prediction))
        self._rank(index, outcomes, differences, gallery)

    def _rank(
        self, index: int, outcomes: Sequence[Outcome], differences: Sequence[Outcome], gallery: int
    ) -> None:
        """Keep the sample for the gallery if it is among the worst."""
        errors = [outcome.error for outcome in outcomes]
        ranked = RankedSample(
            index,
            _mean_error(outcomes),
            _mean_error(differences),
            max(errors, default=0.0) - min(errors, default=0.0),
            frozenset(chain.from_iterable(one.kinds for one in outcomes or differences)),
            frozenset(chain.from_iterable(one.classes for one in outcomes or differences)),
        )
        entry = (ranked.difference, ranked.error + ranked.disagreement, -index, ranked)
        (heapq.heappush if len(self.ranked) < gallery else heapq.heappushpop)(self.ranked, entry)

    def _check_truth(self, sample: Sample, truth: Truth) -> None:
        """Create the measures of the first truth; raise `RunError` for a truth of another kind."""
        if self.truth_kind not in (None, type(truth)):
            rule = f"{self.log.task} cannot measure phrases and objects in one run"
            raise RunError(f"{sample.title}: {rule}")
        if not self.measures:
            self.truth_kind = type(truth)
            by_size = any(model.endswith(WITHOUT_TILES) for model in self.models)
            for model in self.models:
                self.measures[model] = measure_for(truth, self.log.task, self.names, by_size)


def _mean_error(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.error for outcome in outcomes])) if outcomes else 0.0


def _speed(rows: Sequence[tuple[float, float, int]]) -> Speed:
    """Return the rates of a closed loop: a sample occupies its latency / requests in flight."""
    latency_s, occupied_s, num_tokens = np.array(rows, dtype=np.float64).T
    p50, p95 = np.quantile(1000 * latency_s, [0.5, 0.95])
    total_s = float(occupied_s.sum())
    return Speed(float(p50), float(p95), len(rows) / total_s, float(num_tokens.sum()) / total_s)
