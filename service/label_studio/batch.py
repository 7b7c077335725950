"""Predicts many tasks in one call, concurrently, before Label Studio stops waiting.

Label Studio sends all selected tasks in one request and stores what it gets. A task that ran out of
time or met a busy service gets no prediction: Label Studio sends it again with the next "Retrieve
Predictions". A task that cannot succeed gets an empty prediction whose version, which Label Studio
shows and filters by, is the error.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, product

from service.admission.places import Place, RequestContext
from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.images.decoding import in_thread
from service.inference.core import Core, Fields
from service.inference.prediction import Answer
from service.inference.recording import record_failure
from service.inference.served_models import ServedModel
from service.label_studio.images import TaskImages
from service.label_studio.mapping import Ask, JsonObject, prediction

MAX_CALL_S = 50  # proxies in front of Label Studio often wait 60 s, Label Studio itself 100 s
_MAX_TASKS = 4  # tasks of one call in flight: their images are in memory
_MAX_ANSWERS = 12  # answers of one call in flight; more would only wait in the service's queues
_TEMPORARY = {"overloaded", "not_ready", "deadline_exceeded", "internal"}

Question = tuple[ServedModel, Ask]


def questions_of(models: Sequence[ServedModel], asks: Sequence[Ask]) -> list[Question]:
    """Return what each model is asked; raise `unsupported_task` if none offers any of the tasks."""
    questions: list[Question] = []
    for model, ask in product(models, asks):
        if ask.task in model.entry.task_ids:
            questions.append((model, ask))
    if asks and not questions:
        names = ", ".join(model.id for model in models)
        tasks = ", ".join(sorted({ask.task for ask in asks}))
        problem = f"the labelling configuration needs {tasks}, which {names} does not offer"
        raise ServiceError(problem, "label_config", "unsupported_task")
    return questions


def first_questions(questions: Sequence[Question]) -> list[Question]:
    """Return each task with the first model that offers it."""
    first: dict[int, Question] = {}
    for model, ask in questions:
        first.setdefault(id(ask), (model, ask))
    return list(first.values())


def version_of(model: ServedModel) -> str:
    return f"{model.id}@{model.manifest.build_key[:8]}"


class Batch:
    """The tasks of one call."""

    def __init__(self, core: Core, images: TaskImages, context: RequestContext) -> None:
        self._core = core
        self._images = images
        deadline_s = min(context.deadline_s, time.monotonic() + MAX_CALL_S)
        self._context = replace(context, deadline_s=deadline_s)
        self._answers = asyncio.Semaphore(_MAX_ANSWERS)

    async def outcomes(self, tasks: Sequence[object], questions: Sequence[Question]) -> list[bytes]:
        """Return the predictions of each task, given by its data, as JSON.

        Raise the first error if every task had a temporary one.
        """
        slots = asyncio.Semaphore(_MAX_TASKS)

        async def answer(data: object) -> bytes | ServiceError:
            async with slots:
                return await self._outcome(data, questions)

        outcomes = await asyncio.gather(*map(answer, tasks))
        is_temporary = all(map(_is_temporary, outcomes))
        if is_temporary and isinstance(outcomes[0], ServiceError):
            raise outcomes[0]
        return list(map(_rendered, outcomes))

    async def _outcome(self, data: object, questions: Sequence[Question]) -> bytes | ServiceError:
        if time.monotonic() >= self._context.deadline_s:
            return DeadlineExceeded(f"the call ended after {MAX_CALL_S} s, before this task")
        try:
            results_of = await self._results_of(data, questions)
            predictions = [prediction(version, results_of[version]) for version in results_of]
            outcome = await in_thread(_json, predictions)
            self._core.places.hold(self._context, len(outcome))
        except Exception as error:  # a defect at one task must not fail the others
            return record_failure(error, self._context.api, self._context.request_id)
        return outcome

    async def prompted(self, data: object, version: str, questions: Sequence[Question]) -> bytes:
        """Return the one prediction, of `version`, that answers a prompt, as JSON."""
        results = chain(*(await self._results_of(data, questions)).values())
        return await in_thread(_json, prediction(version, results))

    async def _results_of(
        self, data: object, questions: Sequence[Question]
    ) -> dict[str, list[JsonObject]]:
        """Return the results of each version of a model, image by image; raise `ServiceError`."""
        results_of: dict[str, list[JsonObject]] = {version_of(model): [] for model, _ in questions}
        for key in dict.fromkeys(ask.control.image_key for _, ask in questions):
            context = replace(self._context, place=Place())  # counts the image
            try:
                source = data.get(key) if isinstance(data, Mapping) else None
                image = await self._images.read(source, context)
                running: list[tuple[ServedModel, asyncio.Task[list[JsonObject]]]] = []
                async with asyncio.TaskGroup() as group:
                    for model, ask in questions:
                        if ask.control.image_key == key:
                            task = group.create_task(self._results(image, model, ask))
                            running.append((model, task))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                await self._core.places.leave(context)
            for model, task in running:
                results_of[version_of(model)] += task.result()
        return results_of

    async def _results(self, image: bytes, model: ServedModel, ask: Ask) -> list[JsonObject]:
        """Return the results of one task; none for a variant that the model does not offer."""
        try:
            answer = await self._answer(image, ask.fields_of(model.id))
        except ServiceError as error:
            if error.code != "unsupported_task":
                raise
            return []
        return await in_thread(list, ask.results(answer))

    async def _answer(self, image: bytes, fields: Fields) -> Answer:
        """Return an answer; wait and try again while the service is busy and the call has time."""
        async with self._answers:
            while True:
                try:
                    async with self._core.answer_slot(self._context) as context:
                        await context.quota.take_request()
                        return await self._core.predict(image, fields, context)
                except Overloaded as error:
                    if time.monotonic() + error.retry_after_s >= self._context.deadline_s:
                        raise
                    await asyncio.sleep(error.retry_after_s)


def _is_temporary(outcome: bytes | ServiceError) -> bool:
    return isinstance(outcome, ServiceError) and outcome.code in _TEMPORARY


def _rendered(outcome: bytes | ServiceError) -> bytes:
    if _is_temporary(outcome):  # no prediction for a task that may be retried
        return _json([])
    if isinstance(outcome, ServiceError):
        return _json([prediction(f"failed: {outcome.message}", [])])
    return outcome


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
