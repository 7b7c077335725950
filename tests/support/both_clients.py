"""The client without and with asyncio, called in the same words."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from client import AsyncClient, Client

KINDS = ("sync", "async")


def call(kind: str, url: str, ask: Callable[[Any], Any], **settings: Any) -> Any:
    """Return what a method of a client of this kind returns; a stream as a list."""
    if kind == "async":
        return asyncio.run(_call(url, ask, settings))
    with Client(url, **settings) as client:
        returned = ask(client)
        return list(returned) if hasattr(returned, "__next__") else returned


async def _call(url: str, ask: Callable[[Any], Any], settings: dict[str, Any]) -> Any:
    async with AsyncClient(url, **settings) as client:
        returned = ask(client)
        return [each async for each in returned] if isinstance(returned, AsyncIterator) else await returned
