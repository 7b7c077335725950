"""Options that several commands share: the connection, and the task with its parameters."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from diptych_client.client import AsyncClient, Client
from diptych_client.long_runs import RunError
from diptych_client.requests import AnswerOptions, TaskParameters
from diptych_client.results import Task


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The service's URL, and the settings of its clients."""

    url: str
    api_key: str | None
    timeout_s: float
    max_retries: int

    def client(self) -> Client:
        return Client(self.url, **self._settings())

    def async_client(self) -> AsyncClient:
        return AsyncClient(self.url, **self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "api_key": self.api_key,
            "timeout_s": self.timeout_s,
            "max_retries": self.max_retries,
        }


def _parameter(text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=text, metavar=metavar, rich_help_panel="Task parameters")


def _generation(text: str, *flags: str) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Generation")


def _objects(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Objects")


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """A task, its parameters and generation options.

    Every field is an option of the command line.
    """

    task: Annotated[str, typer.Option(help="Task id; `diptych tasks` lists them.")]
    labels: Annotated[list[str] | None, _parameter("Label to detect; repeatable.")] = None
    caption: Annotated[str | None, _parameter("Text whose phrases are located.")] = None
    phrases: Annotated[list[str] | None, _parameter("Phrase to locate; repeatable.")] = None
    phrase: Annotated[str | None, _parameter("Object to segment.")] = None
    region: Annotated[
        tuple[float, float, float, float] | None, _parameter("Box in pixels.", "X1 Y1 X2 Y2")
    ] = None
    detail: Annotated[str | None, _parameter("Level of detail.")] = None
    language: Annotated[str | None, _parameter("Language code, such as en.")] = None
    question: Annotated[str | None, _parameter("Question to answer.")] = None
    max_new_tokens: Annotated[int | None, _generation("Maximum number of generated tokens.")] = None
    num_beams: Annotated[int | None, _generation("Beams of beam search.")] = None
    temperature: Annotated[float | None, _generation("Sampling temperature; 0: greedy.")] = None
    top_p: Annotated[float | None, _generation("Probability mass of nucleus sampling.")] = None
    seed: Annotated[int | None, _generation("Seed of sampling.")] = None
    constrained: Annotated[
        bool | None,
        _generation("Generate only well-formed answers.", "--constrained/--unconstrained"),
    ] = None
    min_score: Annotated[float | None, _objects("Minimum score of an object, 0 to 1.")] = None
    nms_iou: Annotated[
        float | None,
        _objects(
            "Drop objects that overlap a better one of the same label by more than this IoU, 0 to"
            " 1."
        ),
    ] = None

    def parameters(self) -> TaskParameters:
        return TaskParameters(
            **{field.name: getattr(self, field.name) for field in fields(TaskParameters)}
        )

    def answer_options(self) -> AnswerOptions:
        """Return the options of the answer; masks are polygons."""
        names = {field.name for field in fields(AnswerOptions)} - {"mask_format"}
        return AnswerOptions(**{name: getattr(self, name) for name in names})


def offered_task(tasks: Iterable[Task], name: str) -> Task:
    """Return the task of this id; raise `RunError` if no model offers it."""
    offered = {task.id: task for task in tasks if task.models}
    if name not in offered:
        raise RunError(f"no model offers task {name!r}; offered are {', '.join(offered)}")
    return offered[name]


def with_task_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `task_options` by one option for each field of
    `TaskOptions`.
    """
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "task_options":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    for field in fields(TaskOptions):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        option = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
        parameters.append(option.replace(annotation=field.type))

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls it with keywords only, by the signature below
        options = {field.name: values.pop(field.name) for field in fields(TaskOptions)}
        command(**values, task_options=TaskOptions(**options))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
