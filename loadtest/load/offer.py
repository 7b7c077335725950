"""What the service offers of a traffic mix: who is asked which task, and which key its result has."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.load.traffic_mix import Api, MixError, TaskShare, TrafficMix

COMPARED = "compared"  # the model of a comparison, in every table


@dataclass(frozen=True, slots=True)
class OfferedTask:
    """A task of the mix, as the service lists it."""

    share: TaskShare
    models: tuple[str, ...]
    result_key: str

    def model(self, api: Api, rng: random.Random) -> str:
        """Return who is asked."""
        return COMPARED if api == "compare" else rng.choice(self.models)


class Offer:
    """The tasks of a mix with the models that offer them."""

    def __init__(self, tasks: Sequence[OfferedTask]) -> None:
        self._tasks = {
            api: [task for task in tasks if api != "compare" or len(task.models) > 1]
            for api in ("rest", "grpc", "stream", "compare")
        }

    def task(self, api: Api, rng: random.Random) -> OfferedTask:
        """Return the task of the next request, by weight; comparisons are about tasks that several models offer."""
        tasks = self._tasks[api]
        return rng.choices(tasks, [task.share.weight for task in tasks])[0]

    def check(self, mix: TrafficMix) -> None:
        """Raise `MixError` where an api of the mix has nothing to ask."""
        for api, weight in mix.apis.items():
            if weight and not self._tasks[api]:
                raise MixError(f"apis.{api}: no task of the mix is offered by several of the served models")


def offer_of(mix: TrafficMix, listed: Mapping[str, Any]) -> Offer:
    """Return what a service offers that answers GET /v1/tasks so; raise `MixError` for what it does not."""
    tasks = {task["id"]: task for task in listed["data"]}
    wanted = dict.fromkeys(share.task for share in mix.tasks)
    if unknown := [task for task in wanted if task not in tasks]:
        raise MixError(f"tasks: the service knows no {', '.join(unknown)}; it knows {', '.join(tasks)}")
    if idle := [task for task in wanted if not tasks[task]["models"]]:
        raise MixError(f"tasks: no served model offers {', '.join(idle)}")
    offer = Offer([_offered(share, tasks[share.task]) for share in mix.tasks])
    offer.check(mix)
    return offer


def _offered(share: TaskShare, task: Mapping[str, Any]) -> OfferedTask:
    return OfferedTask(share, tuple(task["models"]), task["result"])
