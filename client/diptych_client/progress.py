"""A progress bar on stderr, or none."""

from collections.abc import Iterable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

PassedT = TypeVar("PassedT")


class Bar:
    """Counts results; of images without a length the total is unknown."""

    def __init__(self, images: Iterable[object], is_shown: bool) -> None:
        self._total = len(images) if isinstance(images, Sized) else None
        self._is_shown = is_shown
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._is_shown:
            # imported when needed: it takes longer than the rest of the client
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True))
            self._progress.add_task("", total=self._total)
            self._progress.start()
        return self

    def passed(self, result: PassedT) -> PassedT:
        """Count a result and return it."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
