"""Clients that ask one question after the other, whole and streamed, and hold every answer against the known one."""

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
    """What became of one request.

    right     the known answer
    wrong     another one
    refused   an error of the contract, its code in `detail`
    cut       a stream that had begun and ended with such an error
    broken    a connection without an answer
    hung      nothing, longer than the service allows
    """

    kind: Kind
    detail: str
    ended_s: float


@dataclass(slots=True)
class Load:
    """The outcomes so far."""

    known: Mapping[tuple[int, int], str]
    outcomes: list[Outcome] = field(default_factory=list)
    is_over: bool = False

    def kinds(self) -> Counter[Kind]:
        """Count them by kind."""
        return Counter(outcome.kind for outcome in self.outcomes)

    def others(self) -> list[Outcome]:
        """Return those that are not right."""
        return [outcome for outcome in self.outcomes if outcome.kind != "right"]

    def wait_for_more(self, count: int, timeout_s: float = 60) -> None:
        """Return when `count` more requests than now have had their right answer."""
        deadline_s, wanted = time.monotonic() + timeout_s, self.kinds()["right"] + count
        while self.kinds()["right"] < wanted:
            assert time.monotonic() < deadline_s, self.kinds()
            time.sleep(0.02)


@contextmanager
def load(url: str, num_clients: int, models: Sequence[str] = (), known_at: str | None = None) -> Iterator[Load]:
    """Ask each question once for the known answers, then let clients ask all of them over and over; wait for the last.

    `models` narrows the questions to some models; `known_at` is another service that is asked for the known answers.
    """
    forms = [form for form in FORMS if not models or form["model"] in models]
    load = Load(asyncio.run(_known_answers(known_at or url, forms)))
    thread = threading.Thread(target=lambda: asyncio.run(_run(url, forms, num_clients, load)))
    thread.start()
    try:
        yield load
    finally:
        load.is_over = True
        thread.join()


async def _known_answers(url: str, forms: Sequence[Mapping[str, str]]) -> dict[tuple[int, int], str]:
    async with aiohttp.ClientSession(url) as http:
        known = {}
        for image, (number, form) in itertools.product(range(NUM_IMAGES), enumerate(forms)):
            status, text = await _post(http, {name: v for name, v in form.items() if name != "stream"}, image)
            assert status == 200, text
            known[image, number] = _raw_text(text, is_stream=False)
        return known


async def _run(url: str, forms: Sequence[Mapping[str, str]], num_clients: int, load: Load) -> None:
    questions = itertools.cycle(itertools.product(range(NUM_IMAGES), range(len(forms))))
    timeout = aiohttp.ClientTimeout(_HANGS_AFTER_S)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:

        async def client() -> None:
            while not load.is_over:
                image, number = next(questions)
                outcome = await _outcome(http, forms[number], image, load.known[image, number])
                load.outcomes.append(outcome)
                if outcome.kind != "right":
                    await asyncio.sleep(0.1)  # a client that tries again does not spin

        await asyncio.gather(*(client() for _ in range(num_clients)))


async def _outcome(http: aiohttp.ClientSession, form: Mapping[str, str], image: int, known: str) -> Outcome:
    kind: Kind
    try:
        status, text = await _post(http, form, image)
        if status != 200:
            kind, detail = "refused", _code(text)
        else:
            kind, detail = _judged(text, "stream" in form, known)
    except TimeoutError:
        kind, detail = "hung", f"{form} for {_HANGS_AFTER_S} s"
    except aiohttp.ClientError as error:
        kind, detail = "broken", repr(error)
    return Outcome(kind, detail, time.monotonic())


async def _post(http: aiohttp.ClientSession, form: Mapping[str, str], image: int) -> tuple[int, str]:
    data = aiohttp.FormData(dict(form))
    data.add_field("image", _png(image), filename="scene.png", content_type="image/png")
    async with http.post("/v1/predict", data=data) as response:
        return response.status, await response.text()


@cache
def _png(seed: int) -> bytes:
    return scene_png(seed)


def _judged(text: str, is_stream: bool, known: str) -> tuple[Kind, str]:
    if is_stream:
        name, data = parse_events(text)[-1]
        if name == "error":
            return "cut", str(data["error"]["code"])
        if name != "result":
            return "broken", "a stream without an end"
    answer = _raw_text(text, is_stream)
    return ("right", "") if answer == known else ("wrong", f"{answer!r}, not {known!r}")


def _raw_text(text: str, is_stream: bool) -> str:
    """Return the text of an answer; that of a stream is what its pieces say and what its result says."""
    if not is_stream:
        return str(json.loads(text)["raw_text"])
    *pieces, (_, result) = parse_events(text)
    together = "".join(data["text"] for _, data in pieces)
    return together if together == result["raw_text"] else f"{together!r} and {result['raw_text']!r}"


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
