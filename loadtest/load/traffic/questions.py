"""One request after the other: a task by weight, a model that offers it, an image, a deadline."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.load.traffic.scenes import Scenes, SentImage
from loadtest.load.traffic.traffic_mix import APIS, Api, MixError, TaskShare, TrafficMix

COMPARED = "compared"  # the model of a comparison, in every table


@dataclass(frozen=True, slots=True)
class Question:
    """A request that is ready to be sent."""

    api: Api
    task: str
    model: str  # COMPARED: all that offer the task
    parameters: dict[str, Any]  # a region is in pixels
    image: SentImage
    deadline_s: float
    result_key: str

    def form_fields(self) -> dict[str, str]:
        """Return the fields of a form besides the image."""
        fields = {"task": self.task} | ({} if self.model == COMPARED else {"model": self.model})
        values = self.parameters.items()
        return fields | {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in values
        }

    @property
    def repeat_key(self) -> tuple[object, ...] | None:
        """Key of all questions with the same answer; None for an image that is sent once."""
        if self.image.number is None:
            return None
        return self.task, json.dumps(self.parameters), self.image.number


@dataclass(frozen=True, slots=True)
class OfferedTask:
    """A task of the mix that the service offers."""

    share: TaskShare
    models: tuple[str, ...]
    result_key: str


def offered_tasks(mix: TrafficMix, listed: Mapping[str, Any]) -> list[OfferedTask]:
    """Return the tasks of a mix, from the service's GET /v1/tasks.

    Raise `MixError` for those that it lacks.
    """
    tasks = {task["id"]: task for task in listed["data"]}
    wanted = dict.fromkeys(share.task for share in mix.tasks)
    if unknown := [task for task in wanted if task not in tasks]:
        raise MixError(
            f"tasks: the service has no task {', '.join(unknown)}; its tasks are {', '.join(tasks)}"
        )
    if idle := [task for task in wanted if not tasks[task]["models"]]:
        raise MixError(f"tasks: no served model offers {', '.join(idle)}")
    offered = [
        OfferedTask(share, tuple(tasks[share.task]["models"]), tasks[share.task]["result"])
        for share in mix.tasks
    ]
    if mix.apis.get("compare") and not any(len(task.models) > 1 for task in offered):
        raise MixError(
            "apis.compare: no task of the mix is offered by several of the served models"
        )
    return offered


class Questions:
    """An endless supply of questions; comparisons are of tasks that several models offer."""

    def __init__(self, mix: TrafficMix, listed: Mapping[str, Any], rng: random.Random) -> None:
        tasks = offered_tasks(mix, listed)
        self._mix = mix
        self._tasks = dict.fromkeys(APIS, tasks)
        self._tasks["compare"] = [task for task in tasks if len(task.models) > 1]
        self._scenes = Scenes(mix.images, rng)
        self._rng = rng

    def next(self, api: Api) -> Question:
        """Return a question for an interface."""
        tasks = self._tasks[api]
        (offered,) = self._rng.choices(tasks, [task.share.weight for task in tasks])
        task = offered.share.task
        image = self._scenes.next()
        parameters: dict[str, Any] = dict(offered.share.parameters)
        if region := parameters.get("region"):  # shares of the sides
            pairs = zip(region, image.size_wh * 2, strict=True)
            parameters["region"] = [share * side for share, side in pairs]
        return Question(
            api,
            task,
            COMPARED if api == "compare" else self._rng.choice(offered.models),
            parameters,
            image,
            self._mix.deadline_s(task),
            offered.result_key,
        )
