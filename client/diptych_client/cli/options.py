"""Options that several commands share: the connection, and the task with its parameters."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from diptych_client.client import AsyncClient, Client
from diptych_client.requests import AnswerOptions, TaskParameters

_PARAMETERS = "Task parameters"
_GENERATION = "Generation"
_OBJECTS = "Objects"


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The service's URL, and the settings of its clients."""

    url: str
    api_key: str | None
    timeout_s: float
    max_retries: int

    def client(self) -> Client:
        return Client(
            self.url, api_key=self.api_key, timeout_s=self.timeout_s, max_retries=self.max_retries
        )

    def async_client(self) -> AsyncClient:
        return AsyncClient(
            self.url, api_key=self.api_key, timeout_s=self.timeout_s, max_retries=self.max_retries
        )


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """A task, its parameters and generation options.

    Every field is an option of the command line.
    """

    task: Annotated[str, typer.Option(help="Task id; `diptych tasks` lists them.")]
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Label to detect; repeatable.", rich_help_panel=_PARAMETERS),
    ] = None
    caption: Annotated[
        str | None,
        typer.Option(help="Text whose phrases are located.", rich_help_panel=_PARAMETERS),
    ] = None
    phrases: Annotated[
        list[str] | None,
        typer.Option(help="Phrase to locate; repeatable.", rich_help_panel=_PARAMETERS),
    ] = None
    phrase: Annotated[
        str | None, typer.Option(help="Object to segment.", rich_help_panel=_PARAMETERS)
    ] = None
    region: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="Box in pixels.", metavar="X1 Y1 X2 Y2", rich_help_panel=_PARAMETERS),
    ] = None
    detail: Annotated[
        str | None, typer.Option(help="Level of detail.", rich_help_panel=_PARAMETERS)
    ] = None
    language: Annotated[
        str | None, typer.Option(help="Language code, such as en.", rich_help_panel=_PARAMETERS)
    ] = None
    question: Annotated[
        str | None, typer.Option(help="Question to answer.", rich_help_panel=_PARAMETERS)
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum number of generated tokens.", rich_help_panel=_GENERATION),
    ] = None
    num_beams: Annotated[
        int | None, typer.Option(help="Beams of beam search.", rich_help_panel=_GENERATION)
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature; 0: greedy.", rich_help_panel=_GENERATION),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(help="Probability mass of nucleus sampling.", rich_help_panel=_GENERATION),
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampling.", rich_help_panel=_GENERATION)
    ] = None
    constrained: Annotated[
        bool | None,
        typer.Option(
            "--constrained/--unconstrained",
            help="Generate only well-formed answers.",
            rich_help_panel=_GENERATION,
        ),
    ] = None
    min_score: Annotated[
        float | None,
        typer.Option(help="Minimum score of an object, 0 to 1.", rich_help_panel=_OBJECTS),
    ] = None
    nms_iou: Annotated[
        float | None,
        typer.Option(
            help=(
                "Drop objects that overlap a better one of the same label by more than this IoU, 0"
                " to 1."
            ),
            rich_help_panel=_OBJECTS,
        ),
    ] = None

    def parameters(self) -> TaskParameters:
        return TaskParameters(
            **{field.name: getattr(self, field.name) for field in fields(TaskParameters)}
        )

    def answer_options(self) -> AnswerOptions:
        """Return the options of the answer; masks are polygons."""
        return AnswerOptions(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            constrained=self.constrained,
            min_score=self.min_score,
            nms_iou=self.nms_iou,
        )


def with_task_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `task_options` by one option for each field of
    `TaskOptions`.
    """
    own = [
        parameter
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "task_options"
    ]
    options = [_option(field) for field in fields(TaskOptions)]

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls it with keywords only, by the signature below
        task_options = TaskOptions(**{option.name: values.pop(option.name) for option in options})
        command(**values, task_options=task_options)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keyword_only, *options])  # type: ignore[attr-defined]
    return run


def _option(field: Field[Any]) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type
    )
