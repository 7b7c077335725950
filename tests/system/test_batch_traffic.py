"""The p95 of online requests while a batch runs, against that of the same requests without: `make
test-long`.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png
from tests.system.test_answers import FLORENCE, PALIGEMMA
from tests.system.test_batches import create, ended, num_completed, openai_client, predict_line

MAX_RATIO = 1.2
NUM_ROUNDS = 5
ROUND_S = 15
NUM_LINES = 2500  # more than are answered in a round
SEEDS = range(100, 130)  # the batch has other images
ASKED = [
    {"task": "captioning", "model": FLORENCE},
    {"task": "captioning", "model": PALIGEMMA},
    {"task": "ocr", "model": FLORENCE},
    {"task": "object_detection", "model": FLORENCE},
]

pytestmark = pytest.mark.long
Ask = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Clients that ask one request after the other, or requests that arrive at random, per
    second.
    """

    num_clients: int = 0
    rate: float = 0

    async def run(self, ask: Ask) -> None:
        end_s = time.monotonic() + ROUND_S

        async def client() -> None:
            while time.monotonic() < end_s:
                await ask()

        async with asyncio.TaskGroup() as group:
            for _ in range(self.num_clients):
                group.create_task(client())
            while self.rate and time.monotonic() < end_s:
                await asyncio.sleep(random.expovariate(self.rate))
                group.create_task(ask())


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder: Path = tmp_path_factory.mktemp("traffic")
    settings = {"DIPTYCH_BATCHES_FOLDER": str(folder / "batches")}
    with running_service(exported.home, folder / "service.log", **settings) as running:
        yield running


def p95_s(service: RunningService, traffic: Traffic) -> float:
    latencies_s: list[float] = []

    async def play() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:

            async def ask() -> None:
                start_s = time.monotonic()
                files = {"image": scene_png(random.choice(SEEDS))}
                (
                    await http.post("/v1/predict", data=random.choice(ASKED), files=files)
                ).raise_for_status()
                latencies_s.append(time.monotonic() - start_s)

            await traffic.run(ask)

    asyncio.run(play())
    return statistics.quantiles(latencies_s, n=20)[-1]


@pytest.mark.parametrize(
    "traffic", [Traffic(num_clients=2), Traffic(rate=4)], ids=["2 clients", "4 a second"]
)
def test_online_requests_hardly_notice_a_batch(service: RunningService, traffic: Traffic) -> None:
    ratios = []
    answered = 0
    with openai_client(service, "-") as client:
        p95_s(service, traffic)  # to warm up
        for number in range(NUM_ROUNDS):
            random.seed(number)
            alone_s = p95_s(service, traffic)
            batch = start(client)
            before = num_completed(client, batch)
            random.seed(number)
            beside_s = p95_s(service, traffic)
            num_answered = num_completed(client, batch) - before
            client.batches.cancel(batch.id)
            ended(client, batch)
            ratios.append(beside_s / alone_s)
            answered += num_answered
            print(
                f"p95 {alone_s * 1000:.0f} ms, {beside_s * 1000:.0f} ms beside"
                f" {num_answered / ROUND_S:.1f} requests/s"
            )
    print(f"{traffic}: median ratio {statistics.median(ratios):.2f}")
    assert answered > 0
    assert statistics.median(ratios) <= MAX_RATIO


def start(client: openai.OpenAI) -> openai.types.Batch:
    batch = create(
        client,
        [predict_line(number, (FLORENCE, PALIGEMMA)[number % 2]) for number in range(NUM_LINES)],
    )
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.05)
    return batch
