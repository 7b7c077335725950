"""Clients that send one request after the other, some streamed, and compare every answer with the
expected text.
"""

import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import aiohttp

from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.waiting import wait_until

NUM_IMAGES = 4
_HANGS_AFTER_S = 90  # above the service's own limit of 60

Kind = Literal["right", "wrong", "refused", "cut", "broken", "hung"]
Form = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request.

    right     the expected answer
    wrong     another answer
    refused   an error of the API, its code in `detail`
    cut       a stream that ended with such an error
    broken    a connection that ended without an answer
    hung      no answer within the service's own limit
    """

    kind: Kind
    detail: str = ""


@dataclass(slots=True)
class Load:
    """The outcomes so far."""

    expected: Mapping[tuple[int, int], str]  # texts by image and form
    outcomes: list[Outcome] = field(default_factory=list)
    is_over: bool = False

    def kinds(self) -> Counter[Kind]:
        return Counter(outcome.kind for outcome in self.outcomes)

    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind != "right"]

    def wait_for_more(self, count: int, timeout_s: float = 60) -> None:
        """Wait until `count` more requests are answered right."""
        target = self.kinds()["right"] + count
        wait_until(lambda: self.kinds()["right"] >= target, timeout_s, self.kinds)


@contextmanager
def load(
    url: str,
    num_clients: int,
    models: Sequence[str] = ("florence-2-mini", "paligemma-mini"),
    expected_from: str | None = None,
) -> Iterator[Load]:
    """Run clients in a thread until the end of the block, then wait for their last answers.

    The expected answers are read first, from `expected_from` or else from the service itself.
    """
    forms: list[Form] = []
    for task, model in itertools.product(("captioning", "ocr"), models):
        forms += [{"task": task, "model": model}]
        forms += [{"task": task, "model": model, "stream": "true"}]
    load = Load(asyncio.run(_expected_answers(expected_from or url, forms)))
    thread = threading.Thread(target=lambda: asyncio.run(_run(url, forms, num_clients, load)))
    thread.start()
    try:
        yield load
    finally:
        load.is_over = True
        thread.join()


async def _expected_answers(url: str, forms: Sequence[Form]) -> dict[tuple[int, int], str]:
    expected = {}
    async with aiohttp.ClientSession(url) as http:
        for image, (number, form) in itertools.product(range(NUM_IMAGES), enumerate(forms)):
            whole = {name: form[name] for name in ("task", "model")}
            status, text = await _post(http, whole, image)
            assert status == 200, text
            expected[image, number] = _raw_text(text, is_stream=False)
    return expected


async def _run(url: str, forms: Sequence[Form], num_clients: int, load: Load) -> None:
    questions = itertools.cycle(itertools.product(range(NUM_IMAGES), range(len(forms))))
    timeout = aiohttp.ClientTimeout(_HANGS_AFTER_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as http:

        async def client() -> None:
            while not load.is_over:
                image, number = next(questions)
                outcome = await _outcome(http, forms[number], image, load.expected[image, number])
                load.outcomes.append(outcome)
                if outcome.kind != "right":
                    await asyncio.sleep(0.1)  # no busy loop of failing clients

        await asyncio.gather(*(client() for _ in range(num_clients)))


async def _outcome(http: aiohttp.ClientSession, form: Form, image: int, expected: str) -> Outcome:
    try:
        status, text = await _post(http, form, image)
    except TimeoutError:
        return Outcome("hung", f"{form} for {_HANGS_AFTER_S} s")
    except aiohttp.ClientError as error:
        return Outcome("broken", repr(error))
    if status != 200:
        return Outcome("refused", _code(text))
    if "stream" in form:
        name, data = parse_events(text)[-1]
        if name == "error":
            return Outcome("cut", str(data["error"]["code"]))
        if name != "result":
            return Outcome("broken", "a stream without its last event")
    answer = _raw_text(text, "stream" in form)
    return Outcome("right") if answer == expected else Outcome("wrong", f"{answer} for {expected}")


async def _post(http: aiohttp.ClientSession, form: Form, image: int) -> tuple[int, str]:
    data = aiohttp.FormData(dict(form))
    data.add_field("image", _png(image), filename="scene.png", content_type="image/png")
    async with http.post("/v1/predict", data=data) as response:
        return response.status, await response.text()


@cache
def _png(seed: int) -> bytes:
    return scene_png(seed)


def _raw_text(text: str, is_stream: bool) -> str:
    """Return the text of an answer; for a stream whose pieces and result differ, both."""
    if not is_stream:
        return str(json.loads(text)["raw_text"])
    *pieces, (_, result) = parse_events(text)
    joined = "".join(data["text"] for _, data in pieces)
    return joined if joined == result["raw_text"] else f"{joined!r} and {result['raw_text']!r}"


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
