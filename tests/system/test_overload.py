"""Ten times what the service can do, in an open loop: what it takes it answers in time, the rest it refuses at once."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from tests.support.endless_models import endless_models
from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png

MODEL = "florence-2-mini"
NUM_TOKENS = 280  # of every answer: long ones, so that one core can offer ten times what the other can answer
DEADLINE_S = 3.0
CAPACITY_CLIENTS, CAPACITY_S = 24, 6.0
OVERLOAD, OVERLOAD_S = 10, 12.0
LATE_S = 0.5  # of an answer's way back on a machine that is all at work


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request."""

    status: int
    latency_s: float
    retry_after: str | None


@pytest.fixture(scope="module")
def service(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("overload")
    store = endless_models(exported, folder / "bentoml")
    with running_service(store.home, folder / "service.log", DIPTYCH_MODELS=MODEL) as running:
        yield running


def form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in {"task": "captioning", "max_new_tokens": str(NUM_TOKENS), "num_beams": "1"}.items():
        data.add_field(name, value)
    data.add_field("image", scene_png(size_wh=(64, 64)), filename="a.png")
    return data


async def send(session: aiohttp.ClientSession, url: str) -> Sent:
    start_s = time.monotonic()
    headers = {"X-Deadline-Ms": f"{DEADLINE_S * 1000:.0f}"}
    async with session.post(f"{url}/v1/predict", data=form(), headers=headers) as response:
        await response.read()
        return Sent(response.status, time.monotonic() - start_s, response.headers.get("Retry-After"))


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60))


async def capacity(url: str) -> float:
    """Return the answers a second that clients get who each wait for theirs."""
    end_s, num_answered = time.monotonic() + CAPACITY_S, 0

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal num_answered
        while time.monotonic() < end_s:
            num_answered += (await send(http, url)).status == 200

    async with session() as http:
        await asyncio.gather(*(client(http) for _ in range(CAPACITY_CLIENTS)))
    return num_answered / CAPACITY_S


async def open_loop(url: str, rate: float) -> list[Sent]:
    """Send at `rate`, whatever has been answered, at times of a Poisson process."""
    rng, sending = random.Random(0), []
    async with session() as http:
        next_s = time.monotonic()
        end_s = next_s + OVERLOAD_S
        while next_s < end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            sending.append(asyncio.create_task(send(http, url)))
            next_s += rng.expovariate(rate)
        return await asyncio.gather(*sending)


def resident_bytes(service: RunningService) -> int:
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in service.parts().values())


def test_ten_times_its_capacity_costs_the_service_little(service: RunningService) -> None:
    able = asyncio.run(capacity(service.url))
    before = resident_bytes(service)
    sent = asyncio.run(open_loop(service.url, able * OVERLOAD))
    answered = [each for each in sent if each.status == 200]
    refused = [each for each in sent if each.status == 429]
    in_time = [each for each in answered if each.latency_s <= DEADLINE_S]
    goodput = len(in_time) / (OVERLOAD_S + DEADLINE_S)
    refusal_p99_s = float(np.percentile([each.latency_s for each in refused], 99))
    accepted_p95_s = float(np.percentile([each.latency_s for each in answered], 95))
    print(f"capacity {able:.1f}/s, offered {len(sent) / OVERLOAD_S:.1f}/s, goodput {goodput:.1f}/s,", end=" ")
    print(f"refusals p99 {refusal_p99_s * 1000:.0f} ms, accepted p95 {accepted_p95_s:.2f} s, {len(sent)=}")
    from collections import Counter

    print(Counter(each.status for each in sent))
    print("memory", resident_bytes(service) - before)
