"""Tables and texts that the commands print."""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from diptych_client.analysis import Analysis
from diptych_client.cli.terminal import printable
from diptych_client.results import (
    Answer,
    Comparison,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextResult,
    box_of,
    items_of,
    label_of,
)

_NUMBER = re.compile(r"[-−]?[\d.,]+|–|")


def answer_view(answer: Answer | ModelFailure) -> RenderableType:
    """Return the model, the time, and the text or a table of the located objects."""
    if isinstance(answer, ModelFailure):
        message = f"{answer.model}: {answer.error.code}: {answer.error.message}"
        return Text(printable(message), style="red")
    calibrated = ", calibrated scores" if answer.calibrated else ""
    asked = f", labels: {' | '.join(answer.labels)}" if answer.labels else ""
    source = f"{answer.model}, {answer.timings_ms.total:.0f} ms{calibrated}{asked}"
    if (proved := answer.guarantee) is not None:
        source += f", at least {proved.min_precision:.3g} right with {proved.confidence:.3g}"
        source += f" confidence: score from {proved.min_score:.3f}, {proved.left_out} left out"
    title = Text(printable(source), style="bold")
    if isinstance(answer.result, TextResult):
        return Group(title, Text(printable(answer.result.text)))
    rows = []
    for item in items_of(answer.result):
        numbers: Iterable[float] = box_of(item)
        if isinstance(item, TextRegion):
            numbers = chain.from_iterable(item.quad_xy)
        place = " ".join(f"{number:.1f}" for number in numbers)
        rows.append((label_of(item), f"{item.score:.2f}", place))
    table = table_view(("label", "score", "place"), rows)
    return Group(title, table if rows else Text("nothing found"))


def comparison_view(comparison: Comparison) -> RenderableType:
    return Group(*map(answer_view, comparison.answers))


def analysis_view(analysis: Analysis) -> RenderableType:
    """Return the answers of each step, with the number of the object that each is about."""
    parts: list[RenderableType] = []
    for step in analysis.steps:
        truncated = ", truncated" if step.truncated else ""
        plural = "" if len(step.answers) == 1 else "s"
        title = f"{step.id}: {step.task}, {len(step.answers)} answer{plural}{truncated}"
        parts.append(Text(printable(title), style="bold underline"))
        for answer in step.answers:
            if answer.of is not None:
                parts.append(Text(f"object {answer.of}", style="dim"))
            parts.append(answer_view(answer.outcome))
    return Group(*parts)


def models_view(models: Iterable[Model]) -> RenderableType:
    rows = []
    for each in models:
        numbers = (f"{each.parameters:,}", str(each.resolution))
        rows.append((each.id, each.family, *numbers, each.precision, each.license))
    return table_view(("model", "family", "parameters", "resolution", "precision", "license"), rows)


def tasks_view(tasks: Iterable[Task]) -> RenderableType:
    rows = []
    for task in tasks:
        properties = task.parameters.get("properties", {})
        names = properties if isinstance(properties, dict) else ()
        rows.append((task.id, ", ".join(names), task.result, ", ".join(task.models)))
    return table_view(("task", "parameters", "result", "models"), rows)


def table_view(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table that folds long cells; columns of numbers are aligned to the right."""
    lines = [list(map(printable, row)) for row in rows]
    columns = []
    for index, name in enumerate(names):
        is_numeric = all(_NUMBER.fullmatch(line[index]) for line in lines)
        justify: Literal["left", "right"] = "right" if is_numeric and lines else "left"
        # an id in the first column can be copied whole
        columns.append(Column(name, overflow="fold", justify=justify, no_wrap=index == 0))
    table = Table(*columns)
    for line in lines:
        table.add_row(*map(Text, line))  # a label is not markup
    return table
