r"""The answers of an evaluation: asked once, kept in a log, joined to one prediction for each
sample and model.

    {"key": …, "image": …, "model": …, "parameters": {…}, "latency_s": …, "concurrency": …,
    "answer": {…}}

The key is a hash of image, task, model, parameters and options. Only keys and offsets are held in
memory.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Self

from diptych_client.annotate.job import ImageFile
from diptych_client.client import AsyncClient
from diptych_client.evaluation.dataset import ImageStore
from diptych_client.evaluation.questions import Sample
from diptych_client.geometry import ImageSize
from diptych_client.long_runs import AppendLog, FailureLog, send_all
from diptych_client.requests import AnswerOptions, TaskParameters, given_fields
from diptych_client.results import Answer, Instance, Item, TextRegionsResult, TextResult, items_of
from diptych_client.transports.rest_messages import answer_from_json, answer_json

_KEY_BYTES = 8


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
    key: int


class AnswerLog:
    """The answers to one task with the same options, by key."""

    def __init__(self, log: AppendLog, task: str, options: AnswerOptions) -> None:
        self.task = task
        self.options = options
        self._log = log
        self._offsets = {int(value["key"], 16): offset for offset, value in log.values()}

    @classmethod
    def open(cls, path: Path, task: str, options: AnswerOptions) -> Self:
        """Open or create the log; raise `RunError` if another process has it open."""
        log = AppendLog.open(path)
        try:
            return cls(log, task, options)
        except BaseException:
            log.close()
            raise

    def questions(self, samples: Sequence[Sample], model: str) -> Iterator[Question]:
        """Yield every request of the samples to a model."""
        for sample in samples:
            for parameters in sample.requests:
                yield Question(
                    sample, parameters, model, self._key(sample.image, parameters, model)
                )

    def unanswered(self, samples: Sequence[Sample], model: str) -> Iterator[Question]:
        """Yield the requests that the log has no answer to."""
        return (
            question
            for question in self.questions(samples, model)
            if question.key not in self._offsets
        )

    def append(
        self, question: Question, answer: Answer, latency_s: float, concurrency: int
    ) -> None:
        value = {
            "key": f"{question.key:0{2 * _KEY_BYTES}x}",
            "image": question.sample.image.name,
            "model": question.model,
            "parameters": given_fields(question.parameters, self.options),
            "latency_s": latency_s,
            "concurrency": concurrency,
            "answer": answer_json(answer),
        }
        self._offsets[question.key] = self._log.append(value)

    def prediction(self, sample: Sample, model: str) -> Prediction | None:
        """Return the joined answers, None if one is missing."""
        questions = list(self.questions([sample], model))
        if any(question.key not in self._offsets for question in questions):
            return None
        values = [self._log.value(self._offsets[question.key]) for question in questions]
        answers = [answer_from_json(value["answer"]) for value in values]
        return Prediction(
            tuple(
                item
                for q, answer in zip(questions, answers, strict=True)
                for item in _items(q.parameters, answer)
            ),
            _text(answers[0]),
            answers[0].image,
            sum(value["latency_s"] for value in values),
            sum(value["latency_s"] / value["concurrency"] for value in values),
            sum(answer.usage.generated_tokens for answer in answers),
            any(answer.calibrated for answer in answers),
        )

    def close(self) -> None:
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _key(self, image: ImageFile, parameters: TaskParameters, model: str) -> int:
        fields = {"task": self.task, "model": model, **given_fields(parameters, self.options)}
        text = json.dumps([asdict(image), fields], sort_keys=True)
        return int.from_bytes(blake2b(text.encode(), digest_size=_KEY_BYTES).digest())


def _items(parameters: TaskParameters, answer: Answer) -> tuple[Item, ...]:
    """Return the objects.

    Those of a request with one phrase are of that phrase, whatever the model calls them.
    """
    items = items_of(answer.result)
    phrase = parameters.phrase
    if phrase is None:
        return items
    return tuple(
        replace(item, label=phrase) if isinstance(item, Instance) else item for item in items
    )


def _text(answer: Answer) -> str | None:
    """Return the text of an answer; text regions are joined in their order."""
    match answer.result:
        case TextResult(text):
            return text
        case TextRegionsResult(regions):
            return "\n".join(region.text for region in regions)
    return None


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
        """Ask one model everything that it has not answered."""

        async def send(question: Question) -> None:
            image = await asyncio.to_thread(self.store.read, question.sample.image)
            start_s = time.monotonic()
            answer = await client.predict(
                image, self.log.task, question.parameters, model=model, options=self.log.options
            )
            self.log.append(question, answer, time.monotonic() - start_s, self.concurrency)
            advance()

        def fail(question: Question, error: Exception) -> None:
            parameters = given_fields(question.parameters, AnswerOptions())
            self.failures.append(
                {"image": question.sample.image.name, "model": model, **parameters}, error
            )
            advance()

        await send_all(self.log.unanswered(samples, model), send, fail, self.concurrency)
