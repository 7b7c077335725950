"""Two models asked image by image, in a random order, until one is known to be better.

The error of an image is that of the report's gallery, averaged over its samples, from 0 to 1. The
mean of the models' difference is tested by betting (statistics.py), which may be looked at after
every image: a wrong decision has a probability of at most 1 - CONFIDENCE over all looks together.
Equal means that the mean error differs by less than a given margin.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from typing import Literal

import numpy as np

from diptych_client.clients.async_client import AsyncClient
from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.evaluator import measure_for
from diptych_client.evaluation.questions import Asker, ClassNames, Sample
from diptych_client.evaluation.statistics import CONFIDENCE, DIFFERENCE_BETS, log_wealth
from diptych_client.long_runs import RunError

_GROWTH = 10  # a tenth more images between two looks


@dataclass(frozen=True, slots=True)
class Decision:
    """The better model, or that both are equal within the margin."""

    verdict: Literal["first", "second", "equal"]
    num_images: int
    difference: float  # mean error of the first minus that of the second

    def sentence(self, models: Sequence[str], num_all: int) -> str:
        first, second = models
        better = {"first": first, "second": second}.get(self.verdict)
        verdict = f"{better} is better" if better else f"{first} and {second} are equal"
        return (
            f"{verdict}: decided after {self.num_images} of {num_all} images, with"
            f" {CONFIDENCE:.0%} confidence; the mean errors differ by"
            f" {100 * abs(self.difference):.1f} hundredths"
        )


def decide(errors: Sequence[tuple[float, float]], margin: float | None) -> Decision | None:
    """Return what the errors of both models on random images prove; None while they do not."""
    if not errors:
        return None
    differences = np.array([first - second for first, second in errors], dtype=np.float64)
    mean = float(differences.mean())
    log_needed = -math.log((1 - CONFIDENCE) / 2)  # two ways to be wrong
    values = np.stack([-differences, differences], axis=1)
    second_wins, first_wins = log_wealth(values, np.ones(2), DIFFERENCE_BETS) >= log_needed
    if second_wins or first_wins:
        return Decision("second" if second_wins else "first", len(errors), mean)
    if margin is not None:
        within = log_wealth(values - margin, np.full(2, 1 - margin), DIFFERENCE_BETS)
        if (within >= log_needed).all():
            return Decision("equal", len(errors), mean)
    return None


def check_two(models: Sequence[str]) -> None:
    if len(models) != 2:
        raise RunError(f"--until-decided compares two models; given are {', '.join(models)}")


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    images = list(dataset.images)
    random.Random(seed).shuffle(images)
    return replace(dataset, images=images)


@dataclass(slots=True)
class Race:
    """The errors of both models so far, and the decision."""

    asker: Asker
    models: Sequence[str]
    names: ClassNames
    equal_within: float | None  # hundredths
    errors: list[tuple[float, float]] = field(default_factory=list)
    decision: Decision | None = None

    async def run(
        self, client: AsyncClient, samples: Sequence[Sample], advance: Callable[[], None]
    ) -> list[Sample]:
        """Send images to both models until they are told apart; return the samples that were sent.

        Raise `RunError` if no image has labels.
        """
        by_image = [list(group) for _, group in groupby(samples, key=lambda sample: sample.image)]
        margin = None if self.equal_within is None else self.equal_within / 100
        num_sent = 0
        while num_sent < len(by_image) and self.decision is None:
            num_more = max(self.asker.concurrency, num_sent // _GROWTH)
            batch = by_image[num_sent : num_sent + num_more]
            for model in self.models:
                await self.asker.ask(client, list(chain(*batch)), model, advance)
            for image_samples in batch:
                self._add(image_samples)
            num_sent += len(batch)
            self.decision = decide(self.errors, margin)
        if not self.errors:
            raise RunError("--until-decided needs labels: no answered image has any")
        return list(chain(*by_image[:num_sent]))

    def sentence(self, num_all: int) -> str:
        if self.decision is None:
            return f"{' and '.join(self.models)} are not told apart by {len(self.errors)} images"
        return self.decision.sentence(self.models, num_all)

    def _add(self, samples: Sequence[Sample]) -> None:
        """Add the mean errors of both models about an image, unless one did not answer."""
        means = []
        for model in self.models:
            errors = []
            for sample in samples:
                prediction = self.asker.log.prediction(sample, model)
                if prediction is None:
                    return
                if sample.truth is not None:
                    measure = measure_for(sample.truth, self.asker.log.task, self.names)
                    errors.append(measure.add(sample.truth, prediction).error)
            if not errors:
                return
            means.append(float(np.mean(errors)))
        first, second = means
        self.errors.append((first, second))
