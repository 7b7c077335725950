"""The parameters of one request, validated against the task table, with defaults."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.errors import ParameterError
from tasks.results import BoxXyxy
from tasks.table import Task


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """The validated parameters of one request; those not given are None."""

    labels: tuple[str, ...] | None = None
    caption: str | None = None
    phrases: tuple[str, ...] | None = None
    phrase: str | None = None
    region: BoxXyxy | None = None
    detail: str | None = None
    language: str | None = None
    question: str | None = None


def parse_parameters(task: Task, values: Mapping[str, object]) -> TaskParameters:
    """Validate JSON values and return the typed parameters; raise `ParameterError`."""
    by_name = {parameter.name: parameter for parameter in task.parameters}
    for name in values:
        if name not in by_name:
            allowed = f"allowed are {', '.join(by_name)}" if by_name else "it has no parameters"
            raise ParameterError(name, f"{name} is not a parameter of {task.id}; {allowed}")
    if task.exactly_one_of:
        present = [name for name in task.exactly_one_of if name in values]
        if len(present) != 1:
            param = present[-1] if present else task.exactly_one_of[0]
            allowed = ", ".join(task.exactly_one_of)
            got = " and ".join(present) or "none"
            raise ParameterError(param, f"{task.id} requires exactly one of {allowed}; got {got}")
    for name in task.required:
        if name not in values:
            raise ParameterError(name, f"{task.id} requires {name}: {by_name[name].description}")
    parsed = {n: p.parse(values[n]) if n in values else p.default for n, p in by_name.items()}
    return TaskParameters(**parsed)  # type: ignore[arg-type]  # each name has the type of its kind
