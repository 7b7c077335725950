"""Clients that send one request after the other, some streamed, and compare every answer with the
expected text.
"""

import asyncio
import itertools
import json
import threading
import time
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
FORMS: tuple[Mapping[str, str], ...] = tuple(
    {"task": task, "model": model} | ({"stream": "true"} if streams else {})
    for task in ("captioning", "ocr")
    for model in ("florence-2-mini", "paligemma-mini")
    for streams in (False, True)
)
_HANGS_AFTER_S = 90  # above the service's own limit of 60

Kind = Literal["right", "wrong", "refused", "cut", "broken", "hung"]


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
    detail: str
    ended_s: float


@dataclass(slots=True)
class Load:
    """The outcomes so far."""

    expected: Mapping[tuple[int, int], str]  # texts by image and form
    outcomes: list[Outcome] = field(default_factory=list)
    is_over: bool = False

    def kinds(self) -> Counter[Kind]:
        return Counter(outcome.kind for outcome in self.outcomes)

    def others(self) -> list[Outcome]:
        """Return the outcomes that are not right."""
        return [outcome for outcome in self.outcomes if outcome.kind != "right"]

    def wait_for_more(self, count: int, timeout_s: float = 60) -> None:
        """Wait until `count` more requests are answered right."""
        target = self.kinds()["right"] + count
        wait_until(lambda: self.kinds()["right"] >= target, timeout_s, self.kinds)


@contextmanager
def load(
    url: str, num_clients: int, models: Sequence[str] = (), expected_from: str | None = None
) -> Iterator[Load]:
    """Run clients in a thread until the end of the block, then wait for their last answers.

    The expected answers are read first, from `expected_from` or else from the service itself.
    `models` restricts the requests to some models.
    """
    forms = [form for form in FORMS if not models or form["model"] in models]
    load = Load(asyncio.run(_expected_answers(expected_from or url, forms)))
    thread = threading.Thread(target=lambda: asyncio.run(_run(url, forms, num_clients, load)))
    thread.start()
    try:
        yield load
    finally:
        load.is_over = True
        thread.join()


async def _expected_answers(
    url: str, forms: Sequence[Mapping[str, str]]
) -> dict[tuple[int, int], str]:
    async with aiohttp.ClientSession(url) as http:
        expected = {}
        for image, (number, form) in itertools.product(range(NUM_IMAGES), enumerate(forms)):
            status, text = await _post(
                http, {name: v for name, v in form.items() if name != "stream"}, image
            )
            assert status == 200, text
            expected[image, number] = _raw_text(text, is_stream=False)
        return expected


async def _run(url: str, forms: Sequence[Mapping[str, str]], num_clients: int, load: Load) -> None:
    questions = itertools.cycle(itertools.product(range(NUM_IMAGES), range(len(forms))))
    timeout = aiohttp.ClientTimeout(_HANGS_AFTER_S)
    async with aiohttp.ClientSession(
        url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as http:

        async def client() -> None:
            while not load.is_over:
                image, number = next(questions)
                outcome = await _outcome(http, forms[number], image, load.expected[image, number])
                load.outcomes.append(outcome)
                if outcome.kind != "right":
                    await asyncio.sleep(0.1)  # no busy loop of failing clients

        await asyncio.gather(*(client() for _ in range(num_clients)))


async def _outcome(
    http: aiohttp.ClientSession, form: Mapping[str, str], image: int, expected: str
) -> Outcome:
    kind: Kind
    try:
        status, text = await _post(http, form, image)
        if status != 200:
            kind = "refused"
            detail = _code(text)
        else:
            kind, detail = _checked(text, "stream" in form, expected)
    except TimeoutError:
        kind = "hung"
        detail = f"{form} for {_HANGS_AFTER_S} s"
    except aiohttp.ClientError as error:
        kind = "broken"
        detail = repr(error)
    return Outcome(kind, detail, time.monotonic())


async def _post(
    http: aiohttp.ClientSession, form: Mapping[str, str], image: int
) -> tuple[int, str]:
    data = aiohttp.FormData(dict(form))
    data.add_field("image", _png(image), filename="scene.png", content_type="image/png")
    async with http.post("/v1/predict", data=data) as response:
        return response.status, await response.text()


@cache
def _png(seed: int) -> bytes:
    return scene_png(seed)


def _checked(text: str, is_stream: bool, expected: str) -> tuple[Kind, str]:
    if is_stream:
        name, data = parse_events(text)[-1]
        if name == "error":
            return "cut", str(data["error"]["code"])
        if name != "result":
            return "broken", "a stream without its last event"
    answer = _raw_text(text, is_stream)
    return ("right", "") if answer == expected else ("wrong", f"{answer!r}, not {expected!r}")


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
