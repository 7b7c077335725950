"""Text on a terminal: a server or a dataset can neither move the cursor nor colour or reorder."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as Bar
from rich.text import Text

from diptych_client.inputs import Problems
from diptych_client.long_runs import Outputs

_ERRORS = Console(stderr=True)
_MAX_SHOWN = 20  # lines of problems
logger = logging.getLogger("diptych_client")

# Control characters except tab and newline, line separators, and marks that override the direction
# of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Escape control characters as JSON does, so that JSON stays the same document."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: str, is_error: bool = False) -> None:
    """Print a text on stdout, or on stderr."""
    typer.echo(printable(text), err=is_error)


class _Notes(logging.Handler):
    """Prints notes on stderr, above a progress bar."""

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
    for line in problems.lines[:_MAX_SHOWN]:
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
    """Images or requests per second in this run."""

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
