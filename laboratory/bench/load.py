"""The workloads, the same for every server of a model, and the client that sends them.

The client shares the server's cores, so it uses aiohttp, which takes a fraction of the processor
time of httpx.
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

RANDOM_MODEL = "florence-2-base-random"
MODELS = (RANDOM_MODEL, "florence-2-mini", "paligemma-mini")
SHORT_TOKENS = 8
_LENGTHS = (SHORT_TOKENS, 32, SHORT_TOKENS, 64, SHORT_TOKENS, 128, SHORT_TOKENS, 256)
_SCENES_OF_A_RUN = 21
_TIMEOUT_S = 900  # longer than any answer: the time limit is that of the round


@dataclass(frozen=True, slots=True)
class Workload:
    """A list of requests, and the measures that are compared."""

    title: str
    compared: tuple[str, ...]
    first_scene: int  # of those of a run
    num_requests: int = 0  # to a large model; 0: one for each task
    num_clients: int = 16  # each with one request at a time


# each request with another task and another image
MIXED = Workload("(a) mixed", ("requests/s",), 3, 16)
# every task of the model about one image, sent concurrently; another image in every round
ONE_IMAGE = Workload("(b) one image", ("requests/s",), 19)
# answers of 8 to 256 tokens about an image that was sent before
DECODE_HEAVY = Workload("(c) decode-heavy", ("tokens/s", "p95 of short ones, ms"), 20, 8)
SINGLE = Workload("(d) single", ("p50, ms",), 0, 3, num_clients=1)
WORKLOADS = (SINGLE, MIXED, ONE_IMAGE, DECODE_HEAVY)


@dataclass(frozen=True, slots=True)
class BenchQuestion:
    """One question about an image: fields of our API, and the exact prompt of the model."""

    image: str  # path of the file
    fields: dict[str, Any]
    prompt: str
    max_new_tokens: int


Scenes = list[list[BenchQuestion]]  # the questions about each image


@dataclass(frozen=True, slots=True)
class Api:
    """The HTTP interface of a server: our service if `model` is set, else a peer's form."""

    model: str | None = None
    is_constrained: bool = True

    @property
    def path(self) -> str:
        return "/v1/predict" if self.model else "/predict"

    def form(self, question: BenchQuestion) -> dict[str, str]:
        """Return the fields besides the image; lists are sent as JSON."""
        fields = {"max_new_tokens": str(question.max_new_tokens)}
        if self.model is None:
            return fields | {"prompt": question.prompt}
        fields |= {"model": self.model, "constrained": json.dumps(self.is_constrained)}
        for name, value in question.fields.items():
            fields[name] = json.dumps(value) if isinstance(value, list) else str(value)
        return fields

    def read(self, body: Mapping[str, Any]) -> tuple[str, int]:
        """Return the text of an answer and its number of tokens."""
        if self.model is None:
            return body["text"], body["generated_tokens"]
        return body["raw_text"], body["usage"]["generated_tokens"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request."""

    max_new_tokens: int
    latency_s: float
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """Results of one list of requests."""

    elapsed_s: float
    samples: tuple[Sample, ...]  # same order as the requests
    is_cut: bool  # ended by the time limit before all were answered
    cpu_s: float = math.nan  # processor time of all processes of the server


def checkpoint_folder(folder: Path, model: str) -> Path:
    """Return the folder of a model's checkpoint in that of the bench."""
    return folder / "checkpoints" / model


def read_scenes(folder: Path, model: str) -> Scenes:
    """Return the questions about each image of a model."""
    rows = json.loads((folder / f"{model}.json").read_text(encoding="utf-8"))
    return [[BenchQuestion(**row) for row in scene] for scene in rows]


def requests_of(workload: Workload, scenes: Scenes, run: int, factor: int) -> list[BenchQuestion]:
    """Return the round of a run, the same for every server; no two rounds share a scene.

    There are `factor` times the requests of a large model.
    """
    first = factor * (run * _SCENES_OF_A_RUN + workload.first_scene)
    if not workload.num_requests:
        return [questions[0] for questions in _by_task(scenes[first])]
    requests = []
    for index in range(factor * workload.num_requests):
        is_heavy = workload == DECODE_HEAVY
        # another task for each index, and another question of it in each turn
        tasks = _by_task(scenes[first if is_heavy else first + index])
        of_task = tasks[index % len(tasks)]
        question = of_task[index // len(tasks) % len(of_task)]
        if is_heavy:
            question = replace(question, max_new_tokens=_LENGTHS[index % len(_LENGTHS)])
        requests.append(question)
    return requests


def _by_task(questions: Sequence[BenchQuestion]) -> list[list[BenchQuestion]]:
    by_task: dict[str, list[BenchQuestion]] = {}
    for question in questions:
        by_task.setdefault(question.fields["task"], []).append(question)
    return list(by_task.values())


def drive(
    url: str, api: Api, requests: Sequence[BenchQuestion], clients: int, limit_s: float
) -> Round:
    """Send `requests` in order with a number of clients.

    Wait for all answers, but no longer than `limit_s`. Raise `aiohttp.ClientResponseError` if the
    server answers with an error.
    """
    return asyncio.run(_drive(url, api, requests, clients, limit_s))


async def _drive(
    url: str, api: Api, requests: Sequence[BenchQuestion], clients: int, limit_s: float
) -> Round:
    images = {request.image: Path(request.image).read_bytes() for request in requests}
    samples: dict[int, Sample] = {}
    pending = iter(enumerate(requests))
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    is_cut = False
    async with aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True) as http:

        async def send() -> None:
            for index, request in pending:
                form = aiohttp.FormData(api.form(request))
                form.add_field(
                    "image", images[request.image], filename="image", content_type="image/png"
                )
                sent_s = time.perf_counter()
                async with http.post(api.path, data=form) as response:
                    body = await response.json()
                latency_s = time.perf_counter() - sent_s
                samples[index] = Sample(request.max_new_tokens, latency_s, *api.read(body))

        start_s = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(send())
        except TimeoutError:
            is_cut = True
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        elapsed_s = time.perf_counter() - start_s
    return Round(elapsed_s, tuple(sample for _, sample in sorted(samples.items())), is_cut)
