"""Tables and texts that the commands print."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from diptych_client.cli.terminal import printable
from diptych_client.results import (
    Answer,
    Comparison,
    Item,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextResult,
    items_of,
    label_of,
)


def answer_view(answer: Answer | ModelFailure) -> RenderableType:
    """Return the model, the time, and the text or a table of the located objects; say if scores are
    calibrated.
    """
    if isinstance(answer, ModelFailure):
        message = f"{answer.model}: {answer.error.code}: {answer.error.message}"
        return Text(printable(message), style="red")
    calibrated = ", calibrated scores" if answer.calibrated else ""
    title = Text(
        printable(f"{answer.model}, {answer.timings_ms.total:.0f} ms{calibrated}"), style="bold"
    )
    if isinstance(answer.result, TextResult):
        return Group(title, Text(printable(answer.result.text)))
    items = items_of(answer.result)
    return Group(title, _items_table(items) if items else Text("nothing found"))


def comparison_view(comparison: Comparison) -> RenderableType:
    return Group(*map(answer_view, comparison.answers))


def models_view(models: Iterable[Model]) -> RenderableType:
    rows = [
        (m.id, m.family, f"{m.parameters:,}", str(m.resolution), m.precision, m.license)
        for m in models
    ]
    return _table(("model", "family", "parameters", "resolution", "precision", "license"), rows)


def tasks_view(tasks: Iterable[Task]) -> RenderableType:
    rows = [
        (task.id, ", ".join(_parameters(task)), task.result, ", ".join(task.models))
        for task in tasks
    ]
    return _table(("task", "parameters", "result", "models"), rows)


def _items_table(items: Sequence[Item]) -> Table:
    rows = [(label_of(item), f"{item.score:.2f}", _place(item)) for item in items]
    return _table(("label", "score", "place"), rows)


def _place(item: Item) -> str:
    numbers = (
        [value for xy in item.quad_xy for value in xy]
        if isinstance(item, TextRegion)
        else item.box_xyxy
    )
    return " ".join(f"{number:.1f}" for number in numbers)


def _parameters(task: Task) -> Iterable[str]:
    properties = task.parameters.get("properties", {})
    return properties if isinstance(properties, dict) else ()


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    first, *others = columns
    table = Table(Column(first, no_wrap=True), *(Column(name, overflow="fold") for name in others))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # a label is not markup
    return table
