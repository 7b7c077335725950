"""Ten times what the service can do, in an open loop: what it takes it answers in time, the rest it
refuses at once.
"""

import asyncio
import os
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
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png

pytestmark = pytest.mark.long
MODEL = "florence-2-mini"
# Long answers, so that one core can offer ten times what the other can answer; of many lengths,
# lest those that began together end together, in batches that cost a fifth less than any that
# clients make who come as they like.
NUM_TOKENS = range(240, 321)
NUM_BEAMS = 4
# A figure takes longer: of 24 s, four answers that end just behind them are a tenth of all.
OVERLOAD = 10
OVERLOAD_S = float(os.environ.get("OVERLOAD_S", "24"))
CAPACITY_CLIENTS = 24
CAPACITY_S = OVERLOAD_S / 3
DEADLINE_LATENCIES = 2.0  # unit: latency of a service that is just full
MOST_GROWTH_BYTES = 100_000_000  # all processes: connections and the allocator's arenas


@dataclass(frozen=True, slots=True)
class Sent:
    """The outcome of one request."""

    status: int
    end_s: float  # clock: time.monotonic()
    latency_s: float
    retry_after: str | None


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("overload")
    store = endless_models(exported, folder / "bentoml")
    with forked_service(store.home, folder / "service.log", DIPTYCH_MODELS=MODEL) as running:
        yield running


def form(num_tokens: int) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in {
        "task": "captioning",
        "max_new_tokens": str(num_tokens),
        "num_beams": str(NUM_BEAMS),
    }.items():
        data.add_field(name, value)
    data.add_field("image", scene_png(size_wh=(64, 64)), filename="a.png")
    return data


async def send(
    session: aiohttp.ClientSession, url: str, deadline_s: float, num_tokens: int
) -> Sent:
    start_s = time.monotonic()
    headers = {"X-Deadline-Ms": f"{deadline_s * 1000:.0f}"}
    async with session.post(
        f"{url}/v1/predict", data=form(num_tokens), headers=headers
    ) as response:
        await response.read()
        end_s = time.monotonic()
        return Sent(response.status, end_s, end_s - start_s, response.headers.get("Retry-After"))


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)
    )


async def closed_loop(url: str) -> tuple[list[Sent], float]:
    """Return what clients get who each wait for their answer before they ask again, and the seconds
    that it took.
    """
    start_s = time.monotonic()
    sent = list[Sent]()
    rng = random.Random(1)

    async def client(http: aiohttp.ClientSession) -> None:
        while time.monotonic() < start_s + CAPACITY_S:
            sent.append(await send(http, url, 60, rng.choice(NUM_TOKENS)))

    async with session() as http:
        await asyncio.gather(*(client(http) for _ in range(CAPACITY_CLIENTS)))
    return sent, time.monotonic() - start_s


async def open_loop(url: str, rate: float, deadline_s: float) -> list[Sent]:
    """Send at `rate`, whatever has been answered, at times of a Poisson process."""
    rng = random.Random(0)
    sending = list[asyncio.Task[Sent]]()
    async with session() as http:
        next_s = time.monotonic()
        end_s = next_s + OVERLOAD_S
        while next_s < end_s:
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            sending.append(asyncio.create_task(send(http, url, deadline_s, rng.choice(NUM_TOKENS))))
            next_s += rng.expovariate(rate)
        return await asyncio.gather(*sending)


def resident_bytes(service: RunningService) -> int:
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        for pid in service.parts().values()
    )


def goodput(answered: list[Sent], end_s: float) -> float:
    """Return the answers a second in the last two thirds of an overload that ended at `end_s`: then
    queues are full.
    """
    full_s = OVERLOAD_S * 2 / 3
    return sum(end_s - full_s <= each.end_s < end_s for each in answered) / full_s


def quantile_s(sent: list[Sent], share: float) -> float:
    return float(np.quantile([each.latency_s for each in sent], share))


def test_ten_times_its_capacity_costs_the_service_little(service: RunningService) -> None:
    full, full_s = asyncio.run(closed_loop(service.url))
    assert {each.status for each in full} == {200}
    capacity = len(full) / full_s
    deadline_s = DEADLINE_LATENCIES * quantile_s(full, 0.95)
    before = resident_bytes(service)
    end_s = time.monotonic() + OVERLOAD_S
    sent = asyncio.run(open_loop(service.url, capacity * OVERLOAD, deadline_s))
    answered = [each for each in sent if each.status == 200]
    refused = [each for each in sent if each.status == 429]
    late = [each for each in sent if each.status == 504]
    figures = {
        "capacity, 1/s": capacity,
        "offered, of it": len(sent) / OVERLOAD_S / capacity,
        "goodput, of it": goodput(answered, end_s) / capacity,
        "deadline, s": deadline_s,
        "accepted p95, of it": quantile_s(answered, 0.95) / deadline_s,
        "late, of accepted": len(late) / len(answered + late),
        "refused p99, ms": quantile_s(refused, 0.99) * 1000,
        "memory, MB": (resident_bytes(service) - before) / 1e6,
    }
    print(figures)
    assert len(answered) + len(refused) + len(late) == len(sent)
    assert all(each.retry_after and int(each.retry_after) >= 1 for each in refused)
    # The aims are 0.9, 0.05 and 50 ms; a short test on two cores that others share is held to less.
    assert figures["goodput, of it"] >= 0.45
    assert figures["late, of accepted"] <= 0.25
    assert figures["refused p99, ms"] <= 200
    assert figures["memory, MB"] * 1e6 <= MOST_GROWTH_BYTES
