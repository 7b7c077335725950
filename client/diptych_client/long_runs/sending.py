"""Sends many requests with a limited number in flight.

An error ends the run only if it affects every request.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeVar

from diptych_client.errors import (
    DiptychError,
    InvalidRequest,
    Unauthorized,
    UnknownModel,
    UnsupportedTask,
)

ItemT = TypeVar("ItemT")

# errors of these fields depend on the image: a region may exceed a small one
_IMAGE_FIELDS = ("image", "region")


class FailureLog:
    """A file with one line of JSON for each request that failed in this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_failures = 0
        self._file = path.open("w", encoding="utf-8", buffering=1)

    def append(self, request: Mapping[str, object], error: Exception) -> None:
        """Write the fields that name the request, and its error."""
        if isinstance(error, DiptychError):
            detail = asdict(error.detail)
        else:
            detail = {"code": "unreadable_file", "message": str(error)}
        self._file.write(json.dumps({**request, **detail}) + "\n")
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
            except (Unauthorized, UnknownModel, UnsupportedTask):
                raise
            except (DiptychError, OSError) as error:
                if isinstance(error, InvalidRequest) and error.param not in _IMAGE_FIELDS:
                    raise
                on_failure(item, error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
