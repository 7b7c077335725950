"""Notes, bars, tables and texts that the commands print.

A server or a dataset can neither move the cursor nor colour or reorder text.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Bar
from rich.table import Column, Table
from rich.text import Text

from diptych_client.inputs import Problems
from diptych_client.long_runs import Outputs
from diptych_client.results import (
    Analysis,
    Answer,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextResult,
    box_of,
    items_of,
    label_of,
)

_ERRORS = Console(stderr=True)
_MAX_PROBLEMS = 20  # lines
_NUMBER = re.compile(r"[-−]?[\d.,]+|–|")
logger = logging.getLogger("diptych_client")

# Control characters except tab and newline, line separators, and marks that override the direction
# of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Escape control characters as JSON does, so that JSON stays the same document."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: str, is_error: bool = False) -> None:
    typer.echo(printable(text), err=is_error)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _ERRORS.print(printable(record.getMessage()), markup=False, highlight=False, soft_wrap=True)


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Show notes; `quiet`: errors alone; `verbose`: each request, too."""
    level = logging.ERROR if quiet else logging.INFO
    for name in ("diptych_client", *(("httpx",) if verbose else ())):
        logging.getLogger(name).handlers = [_Notes()]
        logging.getLogger(name).setLevel(level)


def note_problems(problems: Problems, outputs: Outputs | None) -> None:
    """Note input that was left out; with `outputs` all of it is in a file there."""
    for line in problems.lines[:_MAX_PROBLEMS]:
        logger.warning(line)
    file = ""
    if outputs is not None:
        path = outputs.folder / "problems.txt"
        if path.exists():
            outputs.check([path])
            path.unlink()
        if problems.lines:
            outputs.write(path, "\n".join(problems.lines) + "\n")
            file = f"; all are in {path}"
    if problems.lines:
        logger.warning("%s%s", problems.summary(), file)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Bar) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self._unit}/s")


def run_with_progress(
    total: int,
    run: Callable[[Callable[[], None]], Awaitable[None]],
    description: str = "",
    unit: str = "images",
) -> None:
    """Run a coroutine that calls its argument once for each finished unit."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeRemainingColumn(),
    )
    is_hidden = not logger.isEnabledFor(logging.WARNING)
    with Progress(*columns, console=_ERRORS, disable=is_hidden) as progress:
        bar = progress.add_task(printable(description), total=total)

        async def main() -> None:
            await run(partial(progress.advance, bar))

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            _ERRORS.print("interrupted; run the same command to resume")
            raise


def answer_view(answer: Answer | ModelFailure) -> RenderableType:
    """Return the model, the time, and the text or a table of the located objects."""
    if isinstance(answer, ModelFailure):
        message = f"{answer.model}: {answer.error.code}: {answer.error.message}"
        return Text(printable(message), style="red")
    calibrated = ", calibrated scores" if answer.calibrated else ""
    labels = f", labels: {' | '.join(answer.labels)}" if answer.labels else ""
    source = f"{answer.model}, {answer.timings_ms.total:.0f} ms{calibrated}{labels}"
    if (proof := answer.guarantee) is not None:
        source += f", at least {proof.min_precision:.3g} right with {proof.confidence:.3g}"
        source += f" confidence: score from {proof.min_score:.3f}, {proof.left_out} left out"
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
    for model in models:
        numbers = (f"{model.parameters:,}", str(model.resolution))
        rows.append((model.id, model.family, *numbers, model.precision, model.license))
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
