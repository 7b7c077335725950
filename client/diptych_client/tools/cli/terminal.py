"""Notes, bars, tables and texts that the commands print.

A server or a dataset can neither move the cursor nor colour or reorder text.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from itertools import chain
from typing import Any

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from diptych_client.datasets.inputs import Problems
from diptych_client.datasets.long_runs import Outputs
from diptych_client.results import (
    Analysis,
    Answer,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextResult,
    score_text,
)

_ERRORS = Console(stderr=True)
_MAX_PROBLEMS = 20  # lines
logger = logging.getLogger("diptych_client")

# Control characters except tab and newline, line separators, marks that override the direction of
# text, and bytes of a file name that are not UTF-8.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


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
    place = ""
    if outputs is not None:
        path = outputs.folder / "problems.txt"
        if problems.lines or path.exists():
            outputs.write(path, "\n".join([*problems.lines, ""]))
        if problems.lines:
            place = f"; all are in {path}"
    if problems.counts:
        logger.warning("%s%s", problems.summary(), place)


def run_with_progress(
    total: int, run: Callable[[Callable[[], None]], Coroutine[Any, Any, None]], description: str
) -> None:
    """Run a coroutine that calls its argument once for each finished unit."""
    is_hidden = not logger.isEnabledFor(logging.WARNING)
    with Progress(console=_ERRORS, disable=is_hidden) as progress:
        bar = progress.add_task(escape(printable(description)), total=total)
        asyncio.run(run(lambda: progress.advance(bar)))


def answer_view(answer: Answer | ModelFailure) -> RenderableType:
    """Return the model, the time, and the text or a table of the located objects."""
    if isinstance(answer, ModelFailure):
        message = f"{answer.model}: {answer.error.code}: {answer.error.message}"
        return _text(message, "red")
    calibrated = ", calibrated scores" if answer.calibrated else ""
    labels = f", labels: {' | '.join(answer.labels)}" if answer.labels else ""
    source = f"{answer.model}, {answer.timings_ms.total:.0f} ms{calibrated}{labels}"
    if (proof := answer.guarantee) is not None:
        source += f", at least {proof.min_precision:.3g} right with {proof.confidence:.3g}"
        source += f" confidence: score from {proof.min_score:.3f}, {proof.left_out} left out"
    title = _text(source, "bold")
    if isinstance(answer.result, TextResult):
        return Group(title, _text(answer.result.text))
    rows = []
    for item in answer.result.items:
        numbers: Iterable[float] = item.box_xyxy
        if isinstance(item, TextRegion):
            numbers = chain.from_iterable(item.quad_xy)
        place = " ".join(f"{number:.1f}" for number in numbers)
        rows.append((item.label, score_text(item), place))
    table = table_view(("label", "score", "place"), rows)
    return Group(title, table if rows else Text("nothing found"))


def analysis_view(analysis: Analysis) -> RenderableType:
    """Return the answers of each step, with the number of the object that each is about."""
    parts: list[RenderableType] = []
    for step in analysis.steps:
        truncated = ", truncated" if step.truncated else ""
        title = f"{step.id}: {step.task}, answers: {len(step.answers)}{truncated}"
        parts.append(_text(title, "bold underline"))
        for answer in step.answers:
            if answer.of is not None:
                parts.append(Text(f"object {answer.of}", style="dim"))
            parts.append(answer_view(answer.outcome))
    return Group(*parts)


def models_view(models: Iterable[Model]) -> RenderableType:
    rows = []
    for model in models:
        size = f"{model.parameters:,}"
        resolution = str(model.resolution)
        rows.append((model.id, model.family, size, resolution, model.precision, model.license))
    return table_view(("model", "family", "parameters", "resolution", "precision", "license"), rows)


def tasks_view(tasks: Iterable[Task]) -> RenderableType:
    rows = []
    for task in tasks:
        properties: Any = task.parameters.get("properties", {})
        rows.append((task.id, ", ".join(properties), task.result, ", ".join(task.models)))
    return table_view(("task", "parameters", "result", "models"), rows)


def table_view(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table that folds long cells, but the first, which can be copied whole."""
    table = Table()
    for index, name in enumerate(names):
        table.add_column(name, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)  # a label is not markup
