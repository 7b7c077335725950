"""Clients that send one request after the other, half of them streamed, and check answers."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import httpx

from tests.support.running_service import parse_events, post_form
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until

_NUM_IMAGES = 4
_HANGS_AFTER_S = 90  # above the service's own limit of 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request.

    right     the expected answer
    wrong     another answer
    refused   an error of the API, its body in `detail`
    cut       a stream that ended with such an error
    broken    a connection that ended without an answer
    hung      no answer within the service's own limit
    """

    kind: Literal["right", "wrong", "refused", "cut", "broken", "hung"]
    detail: str = ""


@dataclass(slots=True)
class Load:
    outcomes: list[Outcome] = field(default_factory=list)

    def kinds(self) -> Counter[str]:
        return Counter(outcome.kind for outcome in self.outcomes)

    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.kind != "right"]

    def wait_for_more(self, count: int) -> None:
        target = self.kinds()["right"] + count
        wait_until(lambda: self.kinds()["right"] >= target, 60, self.kinds)


@contextmanager
def load(
    url: str,
    num_clients: int,
    models: Sequence[str] = ("florence-2-mini", "paligemma-mini"),
    expected_from: str | None = None,
) -> Iterator[Load]:
    """Run clients in threads during the block; expected answers are those of `expected_from`."""
    requests: list[tuple[bytes, Mapping[str, object], str]] = []
    images = [scene_png(seed) for seed in range(_NUM_IMAGES)]
    with httpx.Client(base_url=expected_from or url, timeout=_HANGS_AFTER_S) as http:
        for image, task, model in itertools.product(images, ("captioning", "ocr"), models):
            form = {"task": task, "model": model}
            answer = post_form(http, "/v1/predict", image, form).raise_for_status().json()
            for stream in (False, True):
                requests.append((image, form | {"stream": stream}, answer["raw_text"]))
    load = Load()
    endless = itertools.cycle(requests)
    is_over = Event()

    def run_client() -> None:
        with httpx.Client(base_url=url, timeout=_HANGS_AFTER_S) as http:
            while not is_over.is_set():
                outcome = _outcome(http, *next(endless))
                load.outcomes.append(outcome)
                if outcome.kind != "right":
                    time.sleep(0.1)  # no busy loop of failing clients

    with ThreadPoolExecutor(num_clients) as threads:
        clients = [threads.submit(run_client) for _ in range(num_clients)]
        try:
            yield load
        finally:
            is_over.set()
    for client in clients:
        client.result()


def _outcome(
    http: httpx.Client, image: bytes, form: Mapping[str, object], expected: str
) -> Outcome:
    try:
        response = post_form(http, "/v1/predict", image, form)
    except httpx.TransportError as error:
        is_timeout = isinstance(error, httpx.TimeoutException)
        return Outcome("hung" if is_timeout else "broken", repr(error))
    if not response.is_success:
        return Outcome("refused", response.text)
    if not form["stream"]:
        answer = response.json()
        text = answer["raw_text"]
    else:
        *pieces, (name, answer) = parse_events(response.text)
        if name != "result":
            return Outcome("cut" if name == "error" else "broken", str(answer))
        text = "".join(data["text"] for _, data in pieces)
    is_right = text == answer["raw_text"] == expected
    return Outcome("right") if is_right else Outcome("wrong", f"{text} for {expected}")
