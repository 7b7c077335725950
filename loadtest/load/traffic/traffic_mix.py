"""The file of the traffic mix: interfaces, image sizes, tasks with their parameters, SLOs.

It is checked completely, but without a service: `questions` checks that the service offers the
tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Api = Literal["rest", "grpc", "stream", "compare"]
APIS: tuple[Api, ...] = get_args(Api)
Parameter = str | list[str] | list[float]

_STRICT = ConfigDict(extra="forbid")
_Positive = Annotated[float, Field(gt=0)]
_SidePx = Annotated[int, Field(ge=16, le=8192)]


class MixError(ValueError):
    """The mix is invalid or the service lacks a part of it.

    The message lists all problems of a file.
    """


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
class Images:
    """Sizes, and the share of new images."""

    __pydantic_config__ = _STRICT

    fresh: Annotated[float, Field(ge=0, le=1)]
    sizes: Annotated[tuple[ImageSize, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class TaskShare:
    """A task with its parameters and its weight."""

    __pydantic_config__ = _STRICT

    task: str
    weight: _Positive
    parameters: dict[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slo:
    """Maximum times of a task, from the due time of the request."""

    __pydantic_config__ = _STRICT

    answer: _Positive  # milliseconds
    first_token: _Positive  # milliseconds, of streams


@dataclass(frozen=True, slots=True)
class TrafficMix:
    """The content of the file."""

    __pydantic_config__ = _STRICT

    apis: dict[Api, Annotated[int, Field(ge=0)]]
    images: Images
    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1)]
    slos_ms: Mapping[str, Slo]
    deadline_slos: _Positive = 1.0
    answers_repeat: bool = True

    @property
    def longest_slo_s(self) -> float:
        """The longest SLO of an answer."""
        return max(self.slos_ms[share.task].answer for share in self.tasks) / 1000

    @property
    def longest_deadline_s(self) -> float:
        return self.longest_slo_s * self.deadline_slos

    def deadline_s(self, task: str) -> float:
        return self.slos_ms[task].answer * self.deadline_slos / 1000


def read_mix(file: Path) -> TrafficMix:
    """Return the content of a file; raise `MixError` with all of its problems."""
    try:
        mix = TypeAdapter(TrafficMix).validate_python(
            yaml.safe_load(file.read_text(encoding="utf-8"))
        )
    except (OSError, yaml.YAMLError) as error:
        raise MixError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        problems = []
        for each in error.errors():
            where = ".".join(map(str, each["loc"])) or "the file"
            problems.append(f"{where}: {each['msg']}, given {str(each['input'])[:80]!r}")
        raise _mix_error(file, problems) from error
    problems = []
    if not any(mix.apis.values()):
        problems.append(f"apis: one of {', '.join(APIS)} must have a weight above 0")
    for task in dict.fromkeys(share.task for share in mix.tasks):
        if task not in mix.slos_ms:
            problems.append(f"slos_ms: task {task} has no SLO")
    if problems:
        raise _mix_error(file, problems)
    return mix


def _mix_error(file: Path, problems: Sequence[str]) -> MixError:
    return MixError("\n  ".join([f"{file}:", *problems]))
