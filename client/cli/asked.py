"""The options that say what is asked of an image, once for all commands that ask."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from client.requests import AnswerOptions, TaskParameters

_PARAMETERS, _OPTIONS = "The task's parameters", "How the answer is written"


@dataclass(frozen=True, slots=True)
class Asked:
    """A task, its parameters and how its answer is written; every field is an option."""

    task: Annotated[str, typer.Option(help="Task id; the command `tasks` lists them.")]
    labels: Annotated[
        list[str] | None, typer.Option(help="What to look for; repeat it.", rich_help_panel=_PARAMETERS)
    ] = None
    caption: Annotated[
        str | None, typer.Option(help="Text whose phrases are looked for.", rich_help_panel=_PARAMETERS)
    ] = None
    phrases: Annotated[
        list[str] | None, typer.Option(help="Phrases to look for; repeat it.", rich_help_panel=_PARAMETERS)
    ] = None
    phrase: Annotated[str | None, typer.Option(help="What to segment.", rich_help_panel=_PARAMETERS)] = None
    region: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="A box: X1 Y1 X2 Y2, in pixels.", metavar="X1 Y1 X2 Y2", rich_help_panel=_PARAMETERS),
    ] = None
    detail: Annotated[str | None, typer.Option(help="How much is told.", rich_help_panel=_PARAMETERS)] = None
    language: Annotated[str | None, typer.Option(help="Language code, such as en.", rich_help_panel=_PARAMETERS)] = None
    question: Annotated[str | None, typer.Option(help="What to answer.", rich_help_panel=_PARAMETERS)] = None
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens.", rich_help_panel=_OPTIONS)] = None
    num_beams: Annotated[int | None, typer.Option(help="Beams of a search.", rich_help_panel=_OPTIONS)] = None
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.", rich_help_panel=_OPTIONS)] = None
    top_p: Annotated[float | None, typer.Option(help="Share that is sampled from.", rich_help_panel=_OPTIONS)] = None
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=_OPTIONS)] = None
    constrained: Annotated[
        bool | None,
        typer.Option("--constrained/--unconstrained", help="Only well-formed answers.", rich_help_panel=_OPTIONS),
    ] = None

    def parameters(self) -> TaskParameters:
        """Return the task's parameters."""
        return TaskParameters(**{field.name: getattr(self, field.name) for field in fields(TaskParameters)})

    def options(self) -> AnswerOptions:
        """Return how the answer is written; masks come as polygons."""
        return AnswerOptions(
            self.max_new_tokens, self.num_beams, self.temperature, self.top_p, self.seed, self.constrained
        )


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of `Asked` as options in place of the command's parameter `asked`."""
    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "asked"]
    options = [_option(field) for field in fields(Asked)]

    @wraps(command)
    def run(**values: Any) -> None:  # typer calls by name, with what the signature below says
        asked = Asked(**{option.name: values.pop(option.name) for option in options})
        command(**values, asked=asked)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keyword_only, *options])  # type: ignore[attr-defined]
    return run


def _option(field: Field[Any]) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
