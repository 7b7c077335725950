"""The requests of a load test: the file traffic_mix.yaml, and images of drawn shapes.

A new image is a drawn one with a patch of a random colour: the service's vision cache cannot
contain it. It is encoded before its request is due, in 2 ms for 640 x 480.
"""

import io
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from PIL import Image, ImageDraw
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Api = Literal["rest", "grpc", "stream", "compare"]
APIS: tuple[Api, ...] = get_args(Api)
COMPARED = "compared"  # stands for the model of a comparison
Parameter = str | list[str] | list[float]

_NUM_DRAWN = 8  # scenes per size
_COLORS = ("red", "green", "blue", "orange", "purple", "yellow")
_PATCH = 1 / 8  # share of a side: still visible after the resize for a model
_STRICT = ConfigDict(extra="forbid")
_Positive = Annotated[float, Field(gt=0)]
_SidePx = Annotated[int, Field(ge=16, le=8192)]


class MixError(ValueError):
    """The mix is invalid or the service lacks a part of it."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """One size and its weight."""

    __pydantic_config__ = _STRICT

    width: _SidePx
    height: _SidePx
    weight: _Positive

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class TaskShare:
    """A task with its parameters and its weight."""

    __pydantic_config__ = _STRICT

    task: str
    weight: _Positive
    parameters: dict[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrafficMix:
    """The content of the file."""

    __pydantic_config__ = _STRICT

    apis: dict[Api, Annotated[int, Field(ge=0)]]
    new_images: Annotated[float, Field(ge=0, le=1)]  # share
    image_sizes: Annotated[tuple[ImageSize, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1)]
    deadline_s: _Positive  # after the due time of a request
    answers_repeat: bool = True


def read_mix(file: Path) -> TrafficMix:
    """Return the content of a file; raise `MixError` with all of its problems."""
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        mix = TypeAdapter(TrafficMix).validate_python(document)
    except (OSError, yaml.YAMLError) as error:
        raise MixError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [f"{file}:"]
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"])) or "the file"
            lines.append(f"{place}: {problem['msg']}, given {str(problem['input'])[:80]!r}")
        raise MixError("\n  ".join(lines)) from error
    if not any(mix.apis.values()):
        raise MixError(f"{file}:\n  apis: one of {', '.join(APIS)} must have a weight above 0")
    return mix


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image file; a repeated one has a number."""

    jpeg: bytes
    size_wh: tuple[int, int]
    number: int | None


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

    def fields(self) -> dict[str, Any]:
        """Return the fields besides the image."""
        model = {} if self.model == COMPARED else {"model": self.model}
        return {"task": self.task} | model | self.parameters

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


def offered_tasks(mix: TrafficMix, listing: Mapping[str, Any]) -> list[OfferedTask]:
    """Return the tasks of a mix, from the service's GET /v1/tasks; raise `MixError` for others."""
    tasks = {task["id"]: task for task in listing["data"]}
    offered = []
    for share in mix.tasks:
        if share.task not in tasks:
            raise MixError(
                f"the service has no task {share.task}; its tasks are {', '.join(tasks)}"
            )
        task = tasks[share.task]
        if not task["models"]:
            raise MixError(f"no served model offers {share.task}")
        offered.append(OfferedTask(share, tuple(task["models"]), task["result"]))
    if mix.apis.get("compare") and not any(len(task.models) > 1 for task in offered):
        raise MixError("apis.compare: no task of the mix is offered by several served models")
    return offered


class Questions:
    """An endless supply of questions; comparisons are of tasks that several models offer."""

    def __init__(self, mix: TrafficMix, listing: Mapping[str, Any], rng: random.Random) -> None:
        self._mix = mix
        self._tasks = offered_tasks(mix, listing)
        self._rng = rng
        self._drawn = [draw_scenes(size.size_wh, rng) for size in mix.image_sizes]
        numbers = itertools.count()
        self._repeated = []
        for scenes in self._drawn:
            images = [SentImage(jpeg_of(scene), scene.size, next(numbers)) for scene in scenes]
            self._repeated.append(images)

    def next(self, api: Api) -> Question:
        """Return a question for an interface."""
        tasks = self._tasks
        if api == "compare":
            tasks = [task for task in tasks if len(task.models) > 1]
        (offered,) = self._rng.choices(tasks, [task.share.weight for task in tasks])
        model = COMPARED if api == "compare" else self._rng.choice(offered.models)
        image = self._image()
        parameters: dict[str, Any] = dict(offered.share.parameters)
        if region := parameters.get("region"):  # shares of the sides
            sides = zip(region, image.size_wh * 2, strict=True)
            parameters["region"] = [share * side for share, side in sides]
        task = offered.share.task
        deadline_s = self._mix.deadline_s
        return Question(api, task, model, parameters, image, deadline_s, offered.result_key)

    def _image(self) -> SentImage:
        """Return an image, its size chosen by weight."""
        weights = [size.weight for size in self._mix.image_sizes]
        (size,) = self._rng.choices(range(len(weights)), weights)
        if self._rng.random() >= self._mix.new_images:
            return self._rng.choice(self._repeated[size])
        image = self._rng.choice(self._drawn[size]).copy()
        width, height = (round(side * _PATCH) for side in image.size)
        x = self._rng.randrange(image.width - width)
        y = self._rng.randrange(image.height - height)
        image.paste(tuple(self._rng.randbytes(3)), (x, y, x + width, y + height))
        return SentImage(jpeg_of(image), image.size, None)


def draw_scenes(size_wh: tuple[int, int], rng: random.Random) -> Sequence[Image.Image]:
    """Return scenes of one to four shapes that may overlap."""
    scenes = []
    for _ in range(_NUM_DRAWN):
        scene = Image.new("RGB", size_wh, "white")
        draw = ImageDraw.Draw(scene)
        for _ in range(rng.randint(1, 4)):
            radius = rng.uniform(0.1, 0.25) * min(size_wh)
            x, y = (rng.uniform(radius, side - radius) for side in size_wh)
            draw.regular_polygon((x, y, radius), rng.randint(3, 8), fill=rng.choice(_COLORS))
        scenes.append(scene)
    return scenes


def jpeg_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
