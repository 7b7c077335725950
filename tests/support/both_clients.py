"""Calls the synchronous and the asyncio client in the same way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from diptych_client import AsyncClient, Client

KINDS = ("sync", "async")


def call(kind: str, url: str, method: Callable[[Any], Any], **settings: Any) -> Any:
    """Return the result of a method of a client of this kind; a stream as a list."""
    if kind == "async":
        return asyncio.run(_call(url, method, settings))
    with Client(url, **settings) as client:
        returned = method(client)
        return list(returned) if hasattr(returned, "__next__") else returned


async def _call(url: str, method: Callable[[Any], Any], settings: dict[str, Any]) -> Any:
    async with AsyncClient(url, **settings) as client:
        returned = method(client)
        return (
            [event async for event in returned]
            if isinstance(returned, AsyncIterator)
            else await returned
        )
