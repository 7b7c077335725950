"""Thousands of bad requests against the running service: no 5xx, no crash, no slot lost, no memory
lost.
"""

import asyncio
import json
import random
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

from service.rpc.proto import vision_pb2 as pb
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.system.test_answers import comparable, post_form

NUMS = [2000, pytest.param(8000, marks=pytest.mark.long)]  # over REST; a quarter of it over gRPC
NUM_CLIENTS = 16
MOST_GROWTH_BYTES = 60_000_000  # gateway, whole test: caches and the allocator's arenas
CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNKNOWN,  # grpc's wording for bytes that are not a message
}
METHODS = ("Predict", "PredictStream", "Compare", "Analyze", "AnalyzeStream", "ListModels")
PATHS = ("/v1/predict", "/v1/compare", "/v1/analyze", "/v1/chat/completions")
ALL_PATHS = (*PATHS, "/v1/images", "/v2/models/florence-2-mini/infer")
TYPES = ("multipart/form-data; boundary=b", "multipart/form-data", "application/json", "text/plain")
NAMES = [*pb.PredictRequest.DESCRIPTOR.fields_by_name, "models", "stream", "steps", "x"]
TEXTS = ("", " ", "x" * 5000, "\0", "<loc_5>", "</s>", "NaN", "https://localhost/", "ocr")
BOXES: tuple[list[float], ...] = ([], [-1, 0, 1, 2], [1e309] * 4, [4, 3, 2, 1], [0.0] * 1000)
VALUES: tuple[object, ...] = (*TEXTS, *BOXES, None, True, -1, 10**30, "\ud800", [[]], {"a": 1})


def changed(rng: random.Random, body: bytes) -> bytes:
    """Return a body that is cut, or has a few other bytes."""
    place = rng.randrange(len(body))
    if rng.random() < 0.5:
        return body[:place]
    return body[:place] + rng.randbytes(rng.randrange(1, 4)) + body[place + 1 :]


def malformed_bodies(num: int, image: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Yield path, content type and body; no image is whole, so no model is called."""
    rng = random.Random(0)
    head = b'--b\r\nContent-Disposition: form-data; name="'
    for _ in range(num):
        fields = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.randrange(1, 6))}
        odd = json.dumps({"task": "ocr", "image": "AAAA", **fields}).encode()
        part = image[: rng.randrange(len(image) // 2)]
        form = head + b'image"; filename="a.png"\r\n\r\n' + part + b"\r\n"
        form += head + rng.choice(NAMES).encode() + b'"\r\n\r\n' + odd + b"\r\n--b--\r\n"
        body = rng.choice((odd, changed(rng, odd), changed(rng, form), rng.randbytes(500)))
        yield rng.choice(ALL_PATHS), rng.choice(TYPES), body


def malformed_messages(num: int, image: bytes) -> Iterator[bytes]:
    """Yield gRPC messages with invalid fields, and bytes that are not a message."""
    rng = random.Random(0)
    for _ in range(num):
        request = pb.PredictRequest(
            image=image[: rng.randrange(len(image) // 2)],
            task=rng.choice(TEXTS),
            labels=[rng.choice(TEXTS) for _ in range(rng.randrange(40))],
            region=rng.choice(BOXES),
            max_new_tokens=rng.choice((-1, 0, 5, 2**62)),
            temperature=rng.choice((-1.0, 0.0, 1e300, float("nan"))),
        )
        setattr(request, rng.choice(("model", "caption", "detail", "tiles")), rng.choice(TEXTS))
        data = request.SerializeToString()
        yield data if rng.random() < 0.9 else changed(rng, data)


async def send_all(url: str, requests: Iterator[tuple[str, str, bytes]]) -> Counter[int]:
    """Send requests with several clients; return how often each status came."""
    statuses: Counter[int] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        for path, content_type, body in requests:  # one iterator for all clients
            headers = {"Content-Type": content_type}
            async with session.post(url + path, data=body, headers=headers) as response:
                await response.read()
                statuses[response.status] += 1

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        await asyncio.gather(*(client(session) for _ in range(NUM_CLIENTS)))
    return statuses


async def call_all(address: str, bodies: Iterator[bytes]) -> Counter[grpc.StatusCode]:
    """Send bytes as the message of each method in turn; return how often each status came."""
    codes: Counter[grpc.StatusCode] = Counter()

    async def client(channel: grpc.aio.Channel) -> None:
        for body in bodies:
            name = METHODS[codes.total() % len(METHODS)]
            make: Any = channel.unary_stream if name.endswith("Stream") else channel.unary_unary
            codes[await make(f"/diptych.v1.Vision/{name}")(body, timeout=60).code()] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(client(channel) for _ in range(NUM_CLIENTS)))
    return codes


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@pytest.mark.parametrize("num_rest", NUMS)
def test_malformed_requests_cost_nothing(
    service: RunningService, client: httpx.Client, num_rest: int
) -> None:
    fields = {"task": "object_detection"}
    expected = comparable(post_form(client, "/v1/predict", scene_png(), fields))
    parts = service.parts()
    before = memory_bytes(parts["diptych"])
    num_grpc = num_rest // 4
    statuses = asyncio.run(send_all(service.url, malformed_bodies(num_rest, scene_png())))
    codes = asyncio.run(call_all(service.grpc_address, malformed_messages(num_grpc, scene_png())))
    assert statuses.total() == num_rest
    assert {status for status in statuses if not 400 <= status < 500} == set(), statuses
    assert codes.total() == num_grpc
    assert set(codes) <= CODES, codes
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] > num_grpc // 3
    assert memory_bytes(parts["diptych"]) - before < MOST_GROWTH_BYTES
    assert service.parts() == parts
    assert metric(service, "diptych_live_sequences") == 0
    assert metric(service, "diptych_requests_total", status="internal") == 0
    again = comparable(post_form(client, "/v1/predict", scene_png(), fields))
    assert again["result"] == expected["result"]


@pytest.mark.parametrize("path", PATHS)
def test_requests_of_the_contract_are_no_server_error(service: RunningService, path: str) -> None:
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
