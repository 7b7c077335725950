"""The progress bar of a long run, on stderr: images done, rate, time left."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

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

from diptych_client.cli.terminal import printable

_ERRORS = Console(stderr=True)


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
    with Progress(*columns, console=_ERRORS) as progress:
        bar = progress.add_task(printable(description), total=total)

        async def main() -> None:
            await run(partial(progress.advance, bar))

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            _ERRORS.print("interrupted; run the same command to resume")
            raise
