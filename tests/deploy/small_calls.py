"""Calls as the gateway makes them: first without pixels, then with.

A broken one is repeated once after a pause.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from pydantic import BaseModel

KEY = "X-Diptych-Image-Key"
PIXELS = bytes(3 * 192 * 192)  # more than HAProxy's buffer, as every model's
PAUSE_S = 0.1  # service/inference/runner_calls.py
_MISSING = 404
_BROKEN = (502, 503)


class Answer(BaseModel):
    """The answer of a small runner."""

    key: str
    runner: str
    hit: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One answered call; `answer` is None where it failed for good."""

    key: str
    answer: Answer | None

    @property
    def is_right(self) -> bool:
        """Return True if it was answered, for its own image."""
        return self.answer is not None and self.answer.key == self.key


def image_key(number: int) -> str:
    """Return a key as the gateway's: 64 hexadecimal digits."""
    return f"{number * 0x9E3779B97F4A7C15:064x}"[-64:]


class Calls:
    """Calls to one URL, and what became of them."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.done: list[Call] = []
        self.num_repeated = 0
        self.in_flight: set[object] = set()

    async def make(self, key: str, seconds: float = 0.0) -> Call:
        """Make one call that the runner works on for `seconds`."""
        token = object()
        self.in_flight.add(token)
        status, answer = await self._repeated(key, b"", seconds)
        if status == _MISSING:
            _, answer = await self._repeated(key, PIXELS, seconds)
        self.in_flight.remove(token)
        call = Call(key, answer)
        self.done.append(call)
        return call

    async def _repeated(self, key: str, body: bytes, seconds: float) -> tuple[int, Answer | None]:
        status, answer = await self._once(key, body, seconds)
        if status not in _BROKEN:
            return status, answer
        self.num_repeated += 1
        await asyncio.sleep(PAUSE_S)
        return await self._once(key, body, seconds)

    async def _once(self, key: str, body: bytes, seconds: float) -> tuple[int, Answer | None]:
        headers = {KEY: key, "X-Seconds": str(seconds)}
        try:
            async with self._session.post(
                f"{self._url}/write", data=body, headers=headers
            ) as response:
                text = await response.read()
                return response.status, Answer.model_validate_json(text) if response.ok else None
        except aiohttp.ClientError:
            return _BROKEN[0], None

    async def make_all(self, keys: Sequence[str], num_clients: int, seconds: float = 0.0) -> None:
        """Make the calls, `num_clients` at a time."""
        await self._clients(iter(keys), num_clients, seconds)

    async def _clients(self, keys: Iterator[str], num_clients: int, seconds: float) -> None:
        async def client() -> None:
            for key in keys:
                await self.make(key, seconds)

        await asyncio.gather(*(client() for _ in range(num_clients)))

    @asynccontextmanager
    async def under_load(
        self, keys: Iterator[str], num_clients: int, seconds: float
    ) -> AsyncIterator[None]:
        """Make calls meanwhile; at the end those in flight are finished."""
        stopped = asyncio.Event()

        def until_stopped() -> Iterator[str]:
            while not stopped.is_set():
                yield next(keys)

        task = asyncio.create_task(self._clients(until_stopped(), num_clients, seconds))
        try:
            yield
        finally:
            stopped.set()
            await task

    async def wait_for_more(self, count: int) -> None:
        """Return when `count` more calls are finished."""
        wanted = len(self.done) + count
        while len(self.done) < wanted:
            await asyncio.sleep(0.01)

    def hit_share(self) -> float:
        """Return the share of calls that brought no pixels."""
        return sum(call.answer is not None and call.answer.hit for call in self.done) / len(
            self.done
        )

    def by_runner(self, start: int = 0) -> Counter[str]:
        """Return the number of answers of each runner, from the call `start` on."""
        return Counter(call.answer.runner for call in self.done[start:] if call.answer is not None)
