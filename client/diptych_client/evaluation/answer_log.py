r"""Answers kept in a log, joined to one prediction for each sample and model.

    {"key": …, "image": …, "model": …, "parameters": {…}, "latency_s": …, "concurrency": …,
    "answer": {…}}

The key is a hash of image, task, model, parameters and options. Only keys and offsets are held in
memory.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Self

from diptych_client.clients.async_client import AsyncClient
from diptych_client.evaluation.questionnaire import Sample
from diptych_client.geometry import ImageSize
from diptych_client.inputs import ImageStore, NamedImage
from diptych_client.long_runs import AppendLog, FailureLog, send_all
from diptych_client.requests import AnswerOptions, TaskParameters, given_fields
from diptych_client.results import Answer, Instance, Item, TextRegionsResult, TextResult, items_of
from diptych_client.transports.rest_messages import answer_from_json, answer_json

_KEY_BYTES = 8
# A model by this name is asked without the tiles of the options
WITHOUT_TILES = " without tiles"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The joined answers of one model to one sample."""

    items: tuple[Item, ...]
    text: str | None
    image: ImageSize
    latency_s: float
    # latency divided by the requests in flight: the sample's part of the run's time
    occupied_s: float
    num_tokens: int
    is_calibrated: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """One request of a sample to one model."""

    sample: Sample
    parameters: TaskParameters
    model: str
    options: AnswerOptions
    key: int


class AnswerLog:
    """The answers to one task with the same options, by key."""

    def __init__(self, log: AppendLog, task: str, options: AnswerOptions) -> None:
        self.task = task
        self.options = options
        self._log = log
        self._offsets = {int(value["key"], 16): offset for offset, value in log.values()}

    @classmethod
    @contextmanager
    def open(cls, path: Path, task: str, options: AnswerOptions) -> Iterator[Self]:
        """Open or create the log; raise `RunError` if another process has it open."""
        with AppendLog.open(path, "key") as log:
            yield cls(log, task, options)

    def questions(self, samples: Sequence[Sample], name: str) -> Iterator[Question]:
        """Yield every request of the samples to a model, also to one without tiles."""
        model = name.removesuffix(WITHOUT_TILES)
        options = self.options
        if model != name:
            options = replace(options, tiles=None, overlap=None, min_object_px=None)
        for sample in samples:
            for parameters in sample.requests:
                given = given_fields(parameters, options)
                fields = {"task": self.task, "model": model, **given}
                text = json.dumps([asdict(sample.image), fields], sort_keys=True)
                digest = blake2b(text.encode(), digest_size=_KEY_BYTES).digest()
                yield Question(sample, parameters, model, options, int.from_bytes(digest))

    def unanswered(self, samples: Sequence[Sample], model: str) -> Iterator[Question]:
        """Yield the requests that the log has no answer to."""
        return (each for each in self.questions(samples, model) if each.key not in self._offsets)

    def append(
        self, question: Question, answer: Answer, latency_s: float, concurrency: int
    ) -> None:
        value = {
            "key": f"{question.key:0{2 * _KEY_BYTES}x}",
            "image": question.sample.image.name,
            "model": question.model,
            "parameters": given_fields(question.parameters, question.options),
            "latency_s": latency_s,
            "concurrency": concurrency,
            "answer": answer_json(answer),
        }
        self._offsets[question.key] = self._log.append(value)

    def prediction(self, sample: Sample, model: str) -> Prediction | None:
        """Return the joined answers, or None if one is missing.

        Instances of a request with one phrase are of that phrase, whatever the model calls them.
        """
        items: list[Item] = []
        values = []
        answers = []
        for question in self.questions([sample], model):
            if question.key not in self._offsets:
                return None
            value = self._log.value(self._offsets[question.key])
            values.append(value)
            answer = answer_from_json(value["answer"])
            answers.append(answer)
            phrase = question.parameters.phrase
            for item in items_of(answer.result):
                if isinstance(item, Instance) and phrase is not None:
                    item = replace(item, label=phrase)
                items.append(item)
        text: str | None = None
        match answers[0].result:
            case TextResult():
                text = answers[0].result.text
            case TextRegionsResult(regions):
                text = "\n".join(region.text for region in regions)
        return Prediction(
            tuple(items),
            text,
            answers[0].image,
            sum(value["latency_s"] for value in values),
            sum(value["latency_s"] / value["concurrency"] for value in values),
            sum(answer.usage.generated_tokens for answer in answers),
            any(answer.calibrated for answer in answers),
        )


@dataclass(frozen=True, slots=True)
class Asker:
    """Sends the questions that have no answer yet, and writes answers and failures down."""

    store: ImageStore
    log: AnswerLog
    failures: FailureLog
    concurrency: int

    async def ask(
        self,
        client: AsyncClient,
        samples: Sequence[Sample],
        model: str,
        advance: Callable[[], None],
    ) -> None:
        """Send one model all questions that it has not answered."""

        async def send(question: Question) -> None:
            image = await asyncio.to_thread(self.store.read, question.sample.image)
            start_s = time.monotonic()
            named = NamedImage(question.sample.image.name, image)
            answer = await client.predict(
                named,
                self.log.task,
                question.parameters,
                model=question.model,
                options=question.options,
            )
            self.log.append(question, answer, time.monotonic() - start_s, self.concurrency)
            advance()

        def fail(question: Question, error: Exception) -> None:
            given = given_fields(question.parameters, AnswerOptions())
            request = {"image": question.sample.image.name, "model": question.model, **given}
            self.failures.append(request, error)
            advance()

        await send_all(self.log.unanswered(samples, model), send, fail, self.concurrency)
