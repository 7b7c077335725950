"""The requests of a soak: answers, streams, errors of every kind, and clients that go before their answer.

    60 %  an answer about an image, every third of them one that was never seen before
    15 %  a stream, read to its end
    15 %  an error: a bad field, no image, an unknown model, a deadline that is over
    10 %  a client that goes: after a moment, or after the first piece of a stream

It knows the REST API and no model; the models are those that the service lists.
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
_MOMENT_S = 0.03
_SIDE_PX = 384
MAX_AT_ONCE = 32
_TASKS = ("captioning", "ocr")  # every model offers them
_ERRORS: tuple[tuple[set[int], Mapping[str, str], Mapping[str, str], bytes | None], ...] = (
    ({400}, {"colour": "red"}, {}, None),
    ({415}, {}, {}, b"no image"),
    ({404}, {"model": "no-such-model"}, {}, None),
    ({429, 504}, {}, {"X-Deadline-Ms": "1"}, None),  # refused at once where others wait
)


@dataclass(slots=True)
class Traffic:
    """Sends requests to `url` and counts what became of them."""

    url: str
    seed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    _random: random.Random = field(init=False)
    _images: list[bytes] = field(init=False)
    _models: list[str] = field(init=False)

    async def closed_loop(self, num_clients: int, seconds: float) -> float:
        """Let clients ask one request after the other; return the requests per second that were done."""
        deadline_s, numbers = time.monotonic() + seconds, itertools.count()

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
        """Send requests at random times, `rate_per_s` of them on average, whether or not others are answered."""
        deadline_s, running = time.monotonic() + seconds, asyncio.Semaphore(MAX_AT_ONCE)
        async with self._session() as http, asyncio.TaskGroup() as group:
            await self._prepare(http)
            while time.monotonic() < deadline_s:
                await asyncio.sleep(self._random.expovariate(rate_per_s))
                await running.acquire()
                group.create_task(self._send(http)).add_done_callback(lambda _: running.release())

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
        return aiohttp.ClientSession(self.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))

    async def _prepare(self, http: aiohttp.ClientSession) -> None:
        self._random = random.Random(self.seed)
        self._images = [new_image() for _ in range(8)]
        async with http.get("/v1/models", raise_for_status=True) as response:
            self._models = [model["id"] for model in (await response.json())["data"]]

    async def _send(self, http: aiohttp.ClientSession) -> None:
        kinds: tuple[Callable[[aiohttp.ClientSession], Coroutine[Any, Any, str]], ...]
        kinds = (self._answer, self._stream, self._error, self._gone)
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
        async with http.post("/v1/predict", data=self._form(fields, image), headers=headers) as response:
            await response.read()
            return "error" if response.status in statuses else f"status {response.status} for {statuses}"

    async def _gone(self, http: aiohttp.ClientSession) -> str:
        if self._random.random() < 0.5:
            async with http.post("/v1/predict", data=self._form({"stream": "true"})) as response:
                await response.content.readany()
                response.close()
        else:
            asking = asyncio.ensure_future(self._answer(http))
            await asyncio.wait({asking}, timeout=_MOMENT_S)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return "gone"

    def _form(self, fields: Mapping[str, str], image: bytes | None = None) -> aiohttp.FormData:
        chosen = {"task": self._random.choice(_TASKS), "model": self._random.choice(self._models)}
        form = aiohttp.FormData({**chosen, **fields})
        form.add_field("image", image or self._random.choice(self._images), filename="image", content_type="image/png")
        return form


def new_image() -> bytes:
    """Return random colours that nobody has seen."""
    colours = np.random.default_rng().integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((_SIDE_PX, _SIDE_PX)).save(file, "JPEG", quality=80)
    return file.getvalue()
