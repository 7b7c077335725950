"""The requests of the soak test: answers, streams, errors of every kind, disconnecting clients.

    60 %  an answer about an image, a third of them about a new image
    15 %  a stream, read to its end
    15 %  an error: an unknown field, no image file, an unknown model, an expired deadline
    10 %  a disconnecting client: after 30 ms, or after the first event of a stream

It knows the REST API and no model: the models are those that the service lists.
"""

import asyncio
import io
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

_TIMEOUT_S = 120
_DISCONNECT_AFTER_S = 0.03
MAX_IN_FLIGHT = 32
EXPECTED = {"answer", "stream", "error", "disconnected"}  # outcomes; all others are failures
_TASKS = ("captioning", "ocr")  # tasks that every model has
_ERRORS: tuple[tuple[set[int], Mapping[str, str], Mapping[str, str], bytes | None], ...] = (
    ({400}, {"colour": "red"}, {}, None),
    ({415}, {}, {}, b"no image"),
    ({404}, {"model": "no-such-model"}, {}, None),
    ({429, 504}, {}, {"X-Deadline-Ms": "1"}, None),  # 429 if others are queued
)


@dataclass(slots=True)
class Traffic:
    """Sends requests to `url` and counts their outcomes."""

    url: str
    seed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    _random: random.Random = field(init=False)
    _images: list[bytes] = field(init=False)
    _models: list[str] = field(init=False)

    async def closed_loop(self, num_clients: int, seconds: float) -> float:
        """Run clients that send one request after the other.

        Return the completed requests per second.
        """
        deadline_s = time.monotonic() + seconds
        numbers = itertools.count()

        async def client(http: aiohttp.ClientSession) -> None:
            while time.monotonic() < deadline_s:
                await self._send(http)
                next(numbers)

        start_s = time.monotonic()
        async with self._session() as http:
            await self._prepare(http)
            await asyncio.gather(*(client(http) for _ in range(num_clients)))
        return next(numbers) / (time.monotonic() - start_s)

    async def open_loop(self, rate_per_s: float, seconds: float) -> None:
        """Send requests as a Poisson process of `rate_per_s`, independent of the answers."""
        deadline_s = time.monotonic() + seconds
        running = asyncio.Semaphore(MAX_IN_FLIGHT)
        async with self._session() as http, asyncio.TaskGroup() as group:
            await self._prepare(http)
            while time.monotonic() < deadline_s:
                await asyncio.sleep(self._random.expovariate(rate_per_s))
                await running.acquire()
                group.create_task(self._send(http)).add_done_callback(lambda _: running.release())

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
        return aiohttp.ClientSession(
            self.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
        )

    async def _prepare(self, http: aiohttp.ClientSession) -> None:
        self._random = random.Random(self.seed)
        self._images = [new_image() for _ in range(8)]
        async with http.get("/v1/models", raise_for_status=True) as response:
            self._models = [model["id"] for model in (await response.json())["data"]]

    async def _send(self, http: aiohttp.ClientSession) -> None:
        kinds: tuple[Callable[[aiohttp.ClientSession], Coroutine[Any, Any, str]], ...]
        kinds = (self._answer, self._stream, self._error, self._disconnect)
        (send,) = self._random.choices(kinds, (60, 15, 15, 10))
        try:
            self.outcomes[await send(http)] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcomes[f"failed: {type(error).__name__}"] += 1

    async def _answer(self, http: aiohttp.ClientSession) -> str:
        image = new_image() if self._random.random() < 1 / 3 else self._random.choice(self._images)
        async with http.post("/v1/predict", data=self._form({}, image)) as response:
            await response.read()
            return "answer" if response.status == 200 else f"status {response.status}"

    async def _stream(self, http: aiohttp.ClientSession) -> str:
        async with http.post("/v1/predict", data=self._form({"stream": "true"})) as response:
            text = await response.text()
            return "stream" if "event: result" in text else f"stream with status {response.status}"

    async def _error(self, http: aiohttp.ClientSession) -> str:
        statuses, fields, headers, image = self._random.choice(_ERRORS)
        async with http.post(
            "/v1/predict", data=self._form(fields, image), headers=headers
        ) as response:
            await response.read()
            return (
                "error"
                if response.status in statuses
                else f"status {response.status} for {statuses}"
            )

    async def _disconnect(self, http: aiohttp.ClientSession) -> str:
        if self._random.random() < 0.5:
            async with http.post("/v1/predict", data=self._form({"stream": "true"})) as response:
                await response.content.readany()
                response.close()
        else:
            answer = asyncio.ensure_future(self._answer(http))
            await asyncio.wait({answer}, timeout=_DISCONNECT_AFTER_S)
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
        return "disconnected"

    def _form(self, fields: Mapping[str, str], image: bytes | None = None) -> aiohttp.FormData:
        chosen = {"task": self._random.choice(_TASKS), "model": self._random.choice(self._models)}
        form = aiohttp.FormData({**chosen, **fields})
        form.add_field(
            "image",
            image or self._random.choice(self._images),
            filename="image",
            content_type="image/png",
        )
        return form


def new_image() -> bytes:
    """Return a JPEG of random colours, so that the service has never seen it."""
    colours = np.random.default_rng().integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((384, 384)).save(file, "JPEG", quality=80)
    return file.getvalue()
