"""Sends many requests with a limited number in flight.

An error ends the run only if it affects every request.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

from diptych_client.errors import DiptychError, affects_every_image

ItemT = TypeVar("ItemT")
_MAX_KEPT = 100


class FailureLog:
    """A file with one line of JSON for each request that failed in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_failures = 0
        self.first: list[dict[str, object]] = []  # the first rows
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, request: Mapping[str, object], error: Exception) -> None:
        """Write the fields that name the request, and its error."""
        if isinstance(error, DiptychError):
            detail = asdict(error.detail)
        else:
            detail = {"code": "unreadable_file", "message": str(error)}
        row = {**request, **detail}
        self._file.write(json.dumps(row) + "\n")
        if len(self.first) < _MAX_KEPT:
            self.first.append(row)
        self.num_failures += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


async def send_all(
    items: Iterable[ItemT],
    send: Callable[[ItemT], Awaitable[None]],
    on_failure: Callable[[ItemT, Exception], None],
    concurrency: int,
) -> None:
    """Send all items concurrently; raise the first error that affects every request."""
    queue = iter(items)

    async def work() -> None:
        for item in queue:
            try:
                await send(item)
            except (DiptychError, OSError) as error:
                if affects_every_image(error):
                    raise
                on_failure(item, error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
