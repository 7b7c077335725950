"""Sends requests to a server with a number of clients, each one request at a time, and times every answer.

The same code for every server: a form with the image file, and the server's own fields. It runs on the server's cores,
so it is aiohttp's client, which takes a fraction of the processor time of httpx.
"""

import asyncio
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from loadtest.workloads import BenchRequest

_TIMEOUT_S = 900  # above any answer of the bench: a time limit is the round's


class Api(Protocol):
    """How one kind of server is asked."""

    path: str

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        """Return the form values beside the image."""
        ...

    def read(self, body: Mapping[str, Any]) -> "Answer":
        """Return what the bench keeps of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What the bench keeps of an answer."""

    text: str
    generated_tokens: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # of our service


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that was answered."""

    question: str
    max_new_tokens: int
    latency_s: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one list of requests."""

    num_requests: int
    elapsed_s: float
    samples: tuple[Sample, ...]  # in the order of the requests
    is_cut: bool  # the time limit ended it before all were answered
    cpu_s: float = math.nan  # processor time of all processes of the server


class PeerApi:
    """The peers' own form."""

    path = "/predict"

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        """Return the exact prompt."""
        return {"prompt": request.question.prompt, "max_new_tokens": str(request.max_new_tokens)}

    def read(self, body: Mapping[str, Any]) -> Answer:
        """Return text and length."""
        return Answer(body["text"], body["generated_tokens"])


class DiptychApi:
    """Our REST API."""

    path = "/v1/predict"

    def __init__(self, model_id: str, extra_fields: Mapping[str, str]) -> None:
        self._always = {"model": model_id, **extra_fields}

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        """Return task and parameters; lists go as JSON."""
        given = {
            name: json.dumps(value) if isinstance(value, list) else value
            for name, value in request.question.fields.items()
        }
        return {**self._always, **given, "max_new_tokens": str(request.max_new_tokens)}

    def read(self, body: Mapping[str, Any]) -> Answer:
        """Return text, length and stages."""
        return Answer(body["raw_text"], body["usage"]["generated_tokens"], body["timings_ms"])


def drive(url: str, api: Api, requests: Sequence[BenchRequest], num_clients: int, limit_s: float) -> Round:
    """Send `requests` in order with `num_clients` clients and wait for all answers, but no longer than `limit_s`.

    Raise `aiohttp.ClientResponseError` where a server answers with an error.
    """
    images = {request.image: request.image.read_bytes() for request in requests}
    return asyncio.run(_drive(url, api, requests, images, num_clients, limit_s))


async def _drive(
    url: str, api: Api, requests: Sequence[BenchRequest], images: Mapping[Any, bytes], num_clients: int, limit_s: float
) -> Round:
    samples: dict[int, Sample] = {}
    waiting = iter(enumerate(requests))
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True) as http:
        start_s = time.perf_counter()
        clients = (_client(http, api, waiting, images, samples) for _ in range(num_clients))
        is_cut = await _within(limit_s, clients)
        elapsed_s = time.perf_counter() - start_s
    return Round(len(requests), elapsed_s, tuple(sample for _, sample in sorted(samples.items())), is_cut)


async def _within(limit_s: float, clients: Iterator[Any]) -> bool:
    """Run the clients; return whether the limit ended them. The first error of one ends all."""
    try:
        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client)
    except TimeoutError:
        return True
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return False


async def _client(
    http: aiohttp.ClientSession,
    api: Api,
    waiting: Iterator[tuple[int, BenchRequest]],
    images: Mapping[Any, bytes],
    samples: dict[int, Sample],
) -> None:
    """Send what waits, one after the other."""
    for index, request in waiting:
        form = aiohttp.FormData(dict(api.fields(request)))
        form.add_field("image", images[request.image], filename=request.image.name, content_type="image/png")
        start_s = time.perf_counter()
        async with http.post(api.path, data=form) as response:
            body = await response.json()
        latency_s = time.perf_counter() - start_s
        samples[index] = Sample(request.question.name, request.max_new_tokens, latency_s, api.read(body))
