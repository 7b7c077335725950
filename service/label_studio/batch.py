"""Predicts many tasks in one call, concurrently, and answers with what is done before Label Studio stops waiting.

Label Studio sends all selected tasks in one request and stores what it gets. A task that ran out of time or met a
busy service gets no prediction: Label Studio sends it again with the next "Retrieve Predictions". A task that cannot
succeed gets an empty prediction whose version, which Label Studio shows and filters by, is the error.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.errors import DeadlineExceeded, InternalError, NotReady, Overloaded, ServiceError, UnsupportedTask
from service.images.decoding import in_thread
from service.inference.core import Core, Fields, Place, RequestContext
from service.inference.prediction import Answer
from service.inference.recording import record_failure
from service.inference.served_models import ServedModel
from service.label_studio.asks import Ask, asks_of
from service.label_studio.images import TaskImages
from service.label_studio.regions import JsonObject, prediction

MAX_CALL_S = 50  # proxies in front of Label Studio often wait 60 s, Label Studio itself 100 s
_MAX_TASKS = 4  # in flight of one call, whose images are in memory
_MAX_ANSWERS = 12  # in flight of one call; more of it would only wait in the service's queues
_TEMPORARY = (Overloaded, NotReady, DeadlineExceeded, InternalError)
_MAX_ID_CHARS = 56  # of the call's id, to which a number is appended


@dataclass(frozen=True, slots=True)
class Plan:
    """The models of a call and what each of them is asked."""

    models: tuple[ServedModel, ...]
    asks: tuple[Ask, ...]

    def by_model(self) -> dict[str, tuple[Ask, ...]]:
        """Return the ids of the models that offer a task, each with all that it offers."""
        return {model.id: asks for model in self.models if (asks := asks_of(model, self.asks))}

    def by_first_model(self) -> dict[str, tuple[Ask, ...]]:
        """Return each task with the first model that offers it."""
        planned: dict[str, tuple[Ask, ...]] = {}
        for ask in self.asks:
            first = next((model.id for model in self.models if ask.task in model.entry.task_ids), None)
            if first is not None:
                planned[first] = (*planned.get(first, ()), ask)
        return planned

    def version(self, planned: Iterable[str]) -> str:
        """Return the version of the first of the planned models, or of all if none is."""
        first = next(iter(planned), self.models[0].id)
        return next(version_of(model) for model in self.models if model.id == first)


def version_of(model: ServedModel) -> str:
    """Return a model's version: its id, and the build of its artifacts, whose predictions may differ."""
    return f"{model.id}@{model.manifest.build_key[:8]}"


class Batch:
    """The tasks of one call."""

    def __init__(self, core: Core, plan: Plan, images: TaskImages, context: RequestContext) -> None:
        self._core = core
        self._plan = plan
        self._images = images
        self._context = replace(context, deadline_s=min(context.deadline_s, time.monotonic() + MAX_CALL_S))
        self._tasks = asyncio.Semaphore(_MAX_TASKS)
        self._answers = asyncio.Semaphore(_MAX_ANSWERS)
        self._num_answers = 0

    async def outcomes(self, tasks: Sequence[Mapping[str, Any]]) -> list[list[JsonObject]]:
        """Return the predictions of each task; raise the first error if every task had a temporary one."""
        outcomes = await asyncio.gather(*(self._outcome(task) for task in tasks))
        errors = [each for each in outcomes if isinstance(each, _TEMPORARY)]
        if errors and len(errors) == len(tasks):
            raise errors[0]
        return [_shown(each) if isinstance(each, ServiceError) else each for each in outcomes]

    async def _outcome(self, task: Mapping[str, Any]) -> list[JsonObject] | ServiceError:
        async with self._tasks:
            if time.monotonic() >= self._context.deadline_s:
                return DeadlineExceeded(f"the call ended after {MAX_CALL_S} s, before this task")
            try:
                found = await self._found(task, self._plan.by_model())
            except Exception as error:  # a defect at one task must not fail the others
                return record_failure(error, self._context.api, self._context.request_id)
            return [prediction(self._plan.version([model]), results) for model, results in found.items()]

    async def prompted(self, task: Mapping[str, Any]) -> list[JsonObject]:
        """Return the one prediction that Label Studio expects for a prompt; raise `ServiceError`."""
        found = await self._found(task, self._plan.by_first_model())
        return [prediction(self._plan.version(found), [result for results in found.values() for result in results])]

    async def _found(
        self, task: Mapping[str, Any], planned: Mapping[str, Sequence[Ask]]
    ) -> dict[str, list[JsonObject]]:
        """Return the results of each model; raise `ServiceError`."""
        data = task.get("data")
        sources = data if isinstance(data, Mapping) else {}
        keys = dict.fromkeys(ask.image_key for asks in planned.values() for ask in asks)
        images = {key: await self._images.read(sources.get(key), self._context) for key in keys}
        try:
            async with asyncio.TaskGroup() as group:
                running = {
                    model: [group.create_task(self._results(model, ask, images)) for ask in asks]
                    for model, asks in planned.items()
                }
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {model: [result for each in results for result in each.result()] for model, results in running.items()}

    async def _results(self, model_id: str, ask: Ask, images: Mapping[str, bytes]) -> list[JsonObject]:
        """Return the results of one task; none for a variant that the model does not offer."""
        try:
            answer = await self._answer(images[ask.image_key], _of_model(ask.fields, model_id))
        except UnsupportedTask:
            return []
        return await in_thread(_rendered, ask, answer)

    async def _answer(self, image: bytes, fields: Fields) -> Answer:
        """Return an answer; wait and try again while the service is busy and the call has time."""
        async with self._answers:
            while True:
                self._num_answers += 1
                request_id = f"{self._context.request_id[:_MAX_ID_CHARS]}.{self._num_answers}"
                context = replace(self._context, request_id=request_id, place=Place())
                try:
                    await context.quota.take_request()
                    return await self._core.predict(image, fields, context)
                except Overloaded as error:
                    if time.monotonic() + error.retry_after_s >= context.deadline_s:
                        raise
                    await asyncio.sleep(error.retry_after_s)


def _rendered(ask: Ask, answer: Answer) -> list[JsonObject]:
    return list(ask.results(answer))


def _of_model(fields: Fields, model_id: str) -> Fields:
    if callable(fields):
        return lambda size_wh: {**fields(size_wh), "model": model_id}
    return {**fields, "model": model_id}


def _shown(error: ServiceError) -> list[JsonObject]:
    """Return what a failed task gets: nothing if it may be tried again, else a prediction that names the error."""
    return [] if isinstance(error, _TEMPORARY) else [prediction(f"failed: {error.message}", [])]
