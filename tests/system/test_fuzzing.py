"""Thousands of bad requests against the running service: no 5xx, no crash, no slot lost, no memory
lost.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.support.malformed_requests import (
    PATHS,
    MalformedRequest,
    malformed_messages,
    malformed_requests,
)
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.system.test_answers import comparable, post_form

NUMS = [2000, pytest.param(8000, marks=pytest.mark.long)]  # over REST; a quarter of it over gRPC
NUM_CLIENTS = 16
MOST_GROWTH_BYTES = 60_000_000  # gateway, whole test: caches and the allocator's arenas
OK = grpc.StatusCode.OK
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NO_MESSAGE = grpc.StatusCode.UNKNOWN  # grpc's wording for bytes that are not a message
METHODS = (
    "Predict",
    "PredictStream",
    "Compare",
    "Analyze",
    "AnalyzeStream",
    "ListModels",
    "ListTasks",
)


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) * 1024


async def send_all(url: str, requests: Iterator[MalformedRequest]) -> Counter[int]:
    """Send requests with several clients; return how often each status came."""
    statuses: Counter[int] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        for request in requests:  # one iterator for all clients
            headers = {"Content-Type": request.content_type}
            async with session.post(
                url + request.path, data=request.body, headers=headers
            ) as response:
                await response.read()
                statuses[response.status] += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        await asyncio.gather(*(client(session) for _ in range(NUM_CLIENTS)))
    return statuses


async def call_all(address: str, bodies: list[bytes]) -> Counter[grpc.StatusCode]:
    """Send bytes as the message of each method in turn; return how often each status came."""
    codes: Counter[grpc.StatusCode] = Counter()

    async def call(channel: grpc.aio.Channel, number: int, body: bytes) -> None:
        name = METHODS[number % len(METHODS)]
        make: Any = channel.unary_stream if name.endswith("Stream") else channel.unary_unary
        calling = make(f"/diptych.v1.Vision/{name}")(body, timeout=60)
        codes[await calling.code()] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        for start in range(0, len(bodies), NUM_CLIENTS):
            part = bodies[start : start + NUM_CLIENTS]
            await asyncio.gather(*(call(channel, start + i, body) for i, body in enumerate(part)))
    return codes


@pytest.mark.parametrize("num_rest", NUMS)
def test_thousands_of_malformed_requests_change_nothing(
    client: httpx.Client, service: RunningService, num_rest: int
) -> None:
    num_grpc = num_rest // 4
    expected = comparable(
        post_form(client, "/v1/predict", scene_png(), {"task": "object_detection"})
    )
    asyncio.run(send_all(service.url, malformed_requests(500, scene_png(), seed=1)))  # warm
    parts = service.parts()
    before = memory_bytes(parts["diptych"])
    statuses = asyncio.run(send_all(service.url, malformed_requests(num_rest, scene_png())))
    codes = asyncio.run(
        call_all(service.grpc_address, list(malformed_messages(num_grpc, scene_png())))
    )
    assert sum(statuses.values()) == num_rest
    assert {status for status in statuses if not 400 <= status < 500} == set(), statuses
    assert sum(codes.values()) == num_grpc
    assert set(codes) <= {OK, INVALID, NOT_FOUND, NO_MESSAGE}, codes
    assert codes[INVALID] > num_grpc // 3
    assert memory_bytes(parts["diptych"]) - before < MOST_GROWTH_BYTES
    assert service.parts() == parts
    assert metric(service, "diptych_live_sequences") == 0
    assert metric(service, "diptych_requests_total", status="internal") == 0
    again = comparable(post_form(client, "/v1/predict", scene_png(), {"task": "object_detection"}))
    assert again["result"] == expected["result"]


@pytest.mark.parametrize("path", PATHS)
def test_what_the_contract_lets_through_is_no_server_error(
    service: RunningService, path: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operation = schema[path]["POST"]

    @settings(
        max_examples=60,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        response = case.call(base_url=service.url)
        case.validate_response(response, checks=[not_a_server_error])

    ask()
