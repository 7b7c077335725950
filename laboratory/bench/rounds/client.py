"""Sends requests with a number of clients, each one request at a time, and measures the latency of
every answer.

The same code for every server: a form with the image file and the server's own fields. It shares
the server's cores, so it uses aiohttp, which takes a fraction of the processor time of httpx.
"""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from laboratory.bench.rounds.workloads import BenchRequest

_TIMEOUT_S = 900  # longer than any answer: the time limit is that of the round


class Api(Protocol):
    """The HTTP interface of one kind of server."""

    path: str

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        """Return the form fields besides the image."""
        ...

    def read(self, body: Mapping[str, Any]) -> "Answer": ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The parts of an answer that the benchmark uses."""

    text: str
    generated_tokens: int
    timings_ms: Mapping[str, float] = field(default_factory=dict)  # our service's


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request."""

    max_new_tokens: int
    latency_s: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Round:
    """Results of one list of requests."""

    num_requests: int
    elapsed_s: float
    samples: tuple[Sample, ...]  # same order as the requests
    is_cut: bool  # ended by the time limit before all were answered
    cpu_s: float = math.nan  # processor time of all processes of the server


class PeerApi:
    """The form of the peers."""

    path = "/predict"

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        return {"prompt": request.question.prompt, "max_new_tokens": str(request.max_new_tokens)}

    def read(self, body: Mapping[str, Any]) -> Answer:
        return Answer(body["text"], body["generated_tokens"])


class DiptychApi:
    """Our REST API; lists are sent as JSON."""

    path = "/v1/predict"

    def __init__(self, model_id: str, extra_fields: Mapping[str, str]) -> None:
        self._constant = {"model": model_id, **extra_fields}

    def fields(self, request: BenchRequest) -> Mapping[str, str]:
        given = request.question.fields.items()
        fields = {
            name: json.dumps(value) if isinstance(value, list) else value for name, value in given
        }
        return {**self._constant, **fields, "max_new_tokens": str(request.max_new_tokens)}

    def read(self, body: Mapping[str, Any]) -> Answer:
        return Answer(body["raw_text"], body["usage"]["generated_tokens"], body["timings_ms"])


def drive(
    url: str, api: Api, requests: Sequence[BenchRequest], num_clients: int, limit_s: float
) -> Round:
    """Send `requests` in order with `num_clients` clients.

    Wait for all answers, but no longer than `limit_s`.

    Raise `aiohttp.ClientResponseError` if the server answers with an error.
    """
    return asyncio.run(_drive(url, api, requests, num_clients, limit_s))


async def _drive(
    url: str, api: Api, requests: Sequence[BenchRequest], num_clients: int, limit_s: float
) -> Round:
    images = {request.image: request.image.read_bytes() for request in requests}
    samples: dict[int, Sample] = {}
    pending = iter(enumerate(requests))
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    is_cut = False
    async with aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True) as http:

        async def send() -> None:
            for index, request in pending:
                name = request.image.name
                form = aiohttp.FormData(dict(api.fields(request)))
                form.add_field(
                    "image", images[request.image], filename=name, content_type="image/png"
                )
                sent_s = time.perf_counter()
                async with http.post(api.path, data=form) as response:
                    body = await response.json()
                samples[index] = Sample(
                    request.max_new_tokens, time.perf_counter() - sent_s, api.read(body)
                )

        start_s = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as clients:
                for _ in range(num_clients):
                    clients.create_task(send())
        except TimeoutError:
            is_cut = True
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        elapsed_s = time.perf_counter() - start_s
    return Round(
        len(requests), elapsed_s, tuple(sample for _, sample in sorted(samples.items())), is_cut
    )
