"""The evaluation of one task: measures and agreement over all samples that every model answered.

Samples are read one by one from the answers; only numbers, and of labelled objects their boxes,
stay in memory.
"""

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations

import numpy as np

from diptych_client.evaluation.answer_log import WITHOUT_TILES, AnswerLog
from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.metrics.agreement import Agreement, ClassAgreement
from diptych_client.evaluation.metrics.objects import ObjectsMeasure
from diptych_client.evaluation.metrics.outcome import Details, Outcome
from diptych_client.evaluation.metrics.phrases import PhrasesMeasure
from diptych_client.evaluation.metrics.texts import TextsMeasure
from diptych_client.evaluation.questionnaire import (
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Sample,
    TextsTruth,
    Truth,
)
from diptych_client.evaluation.run_record import RunRecord
from diptych_client.evaluation.statistics import Estimates, estimates
from diptych_client.long_runs import RunError

Measure = ObjectsMeasure | PhrasesMeasure | TextsMeasure


def measure_for(truth: Truth, task: str, names: ClassNames, by_size: bool = False) -> Measure:
    """Return an empty measure for this kind of truth."""
    match truth:
        case ObjectsTruth():
            return ObjectsMeasure(names, by_size)
        case PhrasesTruth():
            return PhrasesMeasure()
        case TextsTruth():
            return TextsMeasure(task)


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of a sample with the run's concurrency, and what the run answered in a second."""

    latency_p50_ms: float
    latency_p95_ms: float
    images_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Ranked:
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
    gallery: tuple[Ranked, ...]
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
    agreements: list[Agreement] = field(default_factory=list)
    times: dict[str, list[tuple[float, float, int]]] = field(default_factory=dict)
    image_numbers: dict[str, int] = field(default_factory=dict)
    images: list[int] = field(default_factory=list)  # one per answered sample
    labelled_images: list[int] = field(default_factory=list)  # one per answered sample with truth
    # heap, the least wrong first
    ranked: list[tuple[float, float, int, Ranked]] = field(default_factory=list)
    num_unanswered: int = 0
    truth_kind: type[Truth] | None = None

    def evaluate(
        self, dataset_name: str, samples: Sequence[Sample], seed: int, gallery: int
    ) -> Evaluation:
        """Return the results; the gallery has the samples that the models differ most on."""
        pairs = combinations(self.models, 2)
        self.agreements = [Agreement(first, second, self.names) for first, second in pairs]
        self.times = {model: [] for model in self.models}
        for index, sample in enumerate(samples):
            self._add(index, sample, gallery)
        metrics = {model: measure.metrics() for model, measure in self.measures.items()}
        agreed = {each.title: [each.metric()] for each in self.agreements}
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
            agreement_by_class={each.title: each.by_class() for each in self.agreements},
            gallery=tuple(ranked for *_, ranked in sorted(self.ranked, reverse=True)),
        )

    def _add(self, index: int, sample: Sample, gallery: int) -> None:
        found = {model: self.log.prediction(sample, model) for model in self.models}
        predictions = {model: each for model, each in found.items() if each is not None}
        if len(predictions) < len(self.models):
            self.num_unanswered += 1
            return
        image = self.image_numbers.setdefault(sample.image.name, len(self.image_numbers))
        self.images.append(image)
        for model, each in predictions.items():
            self.times[model].append((each.latency_s, each.occupied_s, each.num_tokens))
        differences = []
        for pair in self.agreements:
            differences.append(pair.add(predictions[pair.first], predictions[pair.second]))
        errors: list[Outcome] = []
        if sample.truth is not None:
            self.labelled_images.append(image)
            self._check_truth(sample, sample.truth)
            for model, each in predictions.items():
                errors.append(self.measures[model].add(sample.truth, each))
        error = _mean_error(errors)
        disagreement = _mean_error(differences)
        shown = errors or differences
        kinds = frozenset(chain.from_iterable(each.kinds for each in shown))
        classes = frozenset(chain.from_iterable(each.classes for each in shown))
        of_models = [each.error for each in errors]
        difference = max(of_models, default=0.0) - min(of_models, default=0.0)
        ranked = Ranked(index, error, disagreement, difference, kinds, classes)
        entry = (difference, error + disagreement, -index, ranked)
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
    return float(np.mean([each.error for each in outcomes])) if outcomes else 0.0


def _speed(rows: Sequence[tuple[float, float, int]]) -> Speed:
    """Return the rates of a closed loop: a sample occupies its latency / requests in flight."""
    latency_s, occupied_s, num_tokens = np.array(rows, dtype=np.float64).T
    p50, p95 = np.quantile(1000 * latency_s, [0.5, 0.95])
    total_s = float(occupied_s.sum())
    return Speed(float(p50), float(p95), len(rows) / total_s, float(num_tokens.sum()) / total_s)
