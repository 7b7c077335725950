"""One request after the other: a task by weight, a model that offers it, an image, a deadline."""

import json
import random
from dataclasses import dataclass
from typing import Any

from loadtest.load.offer import COMPARED, Offer
from loadtest.load.scenes import Scenes, SentImage
from loadtest.load.traffic_mix import Api, TrafficMix


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
        """Return the fields of a form beside the image."""
        fields = {"task": self.task} | ({} if self.model == COMPARED else {"model": self.model})
        return fields | {name: _form_value(value) for name, value in self.parameters.items()}

    @property
    def repeat_key(self) -> tuple[object, ...] | None:
        """What a question has in common with those that have the same answer; None for an image seen once."""
        if self.image.number is None:
            return None
        return self.task, json.dumps(self.parameters), self.image.number


class Questions:
    """Draws requests."""

    def __init__(self, mix: TrafficMix, offer: Offer, rng: random.Random) -> None:
        self._mix = mix
        self._offer = offer
        self._scenes = Scenes(mix.images, rng)
        self._rng = rng

    def next(self, api: Api) -> Question:
        """Return a request for an interface."""
        offered = self._offer.task(api, self._rng)
        task, image = offered.share.task, self._scenes.next()
        return Question(
            api,
            task,
            offered.model(api, self._rng),
            {name: _in_pixels(name, value, image.size_wh) for name, value in offered.share.parameters.items()},
            image,
            self._mix.deadline_s(task),
            offered.result_key,
        )


def _in_pixels(name: str, value: Any, size_wh: tuple[int, int]) -> Any:
    """Return a region, which the mix gives in shares of the sides, in pixels; other parameters as they are."""
    if name != "region":
        return value
    width, height = size_wh
    return [share * side for share, side in zip(value, (width, height, width, height), strict=True)]


def _form_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
