"""Thousands of bad requests against the running service: no 5xx, no crash, no slot lost, no memory
lost; and no trace of the paths that clients write.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator

import aiohttp
import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.request_bodies import file_part, form, part
from tests.support.running_service import RunningService, default_scene
from tests.system.service_metrics import metric

NUMS = [2000, pytest.param(8000, marks=pytest.mark.long)]
NUM_CLIENTS = 16
MAX_GROWTH_BYTES = 60_000_000  # gateway, whole test: caches and the allocator's arenas
PATHS = ["/v1/predict", "/v1/compare", "/v1/analyze", "/v1/chat/completions", "/v1/images"]
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


def malformed_bodies(num: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield path, content type and body; no image is whole, so no model is called."""
    rng = random.Random(0)
    scene = default_scene()
    for _ in range(num):
        fields = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.randrange(1, 6))}
        odd = json.dumps({"task": "ocr", "image": "AAAA", **fields}).encode()
        image = scene[: rng.randrange(len(scene) // 2)]
        whole = form(file_part("image", image), part(rng.choice(NAMES), odd))
        body = rng.choice((odd, changed(rng, odd), changed(rng, whole), rng.randbytes(500)))
        yield rng.choice(PATHS), rng.choice(TYPES), body


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


@pytest.mark.parametrize("num", NUMS)
def test_malformed_requests_cost_nothing(service: RunningService, num: int) -> None:
    expected = service.predict(task="object_detection").json()["result"]
    parts = service.parts()
    before = service.resident_bytes()
    statuses = asyncio.run(send_all(service.url, malformed_bodies(num)))
    assert statuses.total() == num
    assert all(400 <= status < 500 for status in statuses), statuses
    assert service.resident_bytes() - before < MAX_GROWTH_BYTES
    assert service.parts() == parts
    assert metric(service, "diptych_live_sequences") == 0
    assert metric(service, "diptych_requests_total", status="internal") == 0
    assert service.predict(task="object_detection").json()["result"] == expected


def test_paths_of_clients_leave_nothing_behind(client: httpx.Client) -> None:
    before = len(client.get("/metrics").content)
    for number in range(50):
        assert client.get(f"/{number}/{'a' * 50_000}").status_code == 404
        assert client.get(f"/v1/models/{number}{'a' * 5_000}").status_code == 404
    assert len(client.get("/metrics").content) < before + 10_000


def test_large_message_is_refused(service: RunningService) -> None:
    with service.vision() as vision, pytest.raises(grpc.RpcError) as caught:
        vision.Predict(pb.PredictRequest(image=bytes(21_000_000), task="ocr"), timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
