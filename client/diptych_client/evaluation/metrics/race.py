"""Two models asked image by image, in a random order, until one is known to be better.

The error of an image is that of the report's gallery, averaged over its samples.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

import numpy as np

from diptych_client.clients.async_client import AsyncClient
from diptych_client.evaluation.answer_log import Asker
from diptych_client.evaluation.dataset import Dataset
from diptych_client.evaluation.deciding import Decision, decide
from diptych_client.evaluation.metrics.evaluator import measure_for
from diptych_client.evaluation.questionnaire import ClassNames, Sample
from diptych_client.long_runs import RunError

_GROWTH = 10  # a tenth more images between two looks


def check_two(models: Sequence[str]) -> None:
    """Raise `RunError` unless there are two models."""
    if len(models) != 2:
        raise RunError(f"--until-decided compares two models; given are {', '.join(models)}")


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """Return the dataset with its images in a random order."""
    order = list(range(len(dataset.images)))
    random.Random(seed).shuffle(order)
    return replace(dataset, images=[dataset.images[index] for index in order])


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
        by_image = [list(own) for _, own in groupby(samples, key=lambda each: each.image)]
        margin = None if self.equal_within is None else self.equal_within / 100
        num_asked = 0
        while num_asked < len(by_image) and self.decision is None:
            num_more = max(self.asker.concurrency, num_asked // _GROWTH)
            more = by_image[num_asked : num_asked + num_more]
            for model in self.models:
                await self.asker.ask(client, list(chain(*more)), model, advance)
            for own in more:
                self.errors += self._errors(own)
            num_asked += len(more)
            self.decision = decide(self.errors, margin)
        if not self.errors:
            raise RunError("--until-decided needs labels: no answered image has any")
        return list(chain(*by_image[:num_asked]))

    def sentence(self, num_all: int) -> str:
        """Return the decision in words."""
        if self.decision is None:
            return f"{' and '.join(self.models)} are not told apart by {len(self.errors)} images"
        return self.decision.sentence(self.models, num_all)

    def _errors(self, samples: Sequence[Sample]) -> Iterator[tuple[float, float]]:
        """Yield the mean errors of both models about an image, unless one did not answer."""
        by_model: list[list[float]] = []
        for model in self.models:
            own = []
            for sample in samples:
                prediction = self.asker.log.prediction(sample, model)
                if prediction is None:
                    return
                if sample.truth is not None:
                    measure = measure_for(sample.truth, self.asker.log.task, self.names)
                    own.append(measure.add(sample.truth, prediction).error)
            by_model.append(own)
        if all(by_model):
            first, second = by_model
            yield float(np.mean(first)), float(np.mean(second))
