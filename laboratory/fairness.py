"""`python -m laboratory.fairness`: what one client's heavy work costs another.

Each attack runs against a service of its own on this machine, from processes of its own, with one
API key. A polite client with another key asks for captions meanwhile, one after the other, and
`/livez` is asked every 20 ms: the event loop answers it alone. The polite client's baseline is
measured just before each attack. Attackers would have machines of their own: here they get the
processor's time that nobody else wants. Run it on a machine that is otherwise idle.
"""

import argparse
import asyncio
import base64
import functools
import hashlib
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from PIL import Image

from export.scenes import render_scene
from laboratory.scenes import evaluation_scene, png
from loadtest.figures import processor_name, table
from loadtest.processes import Launch, free_port, part_ids, running

_GATEWAY = "diptych"  # its name among the processes
_POLITE = "polite-key"
_HOSTILE = "hostile-key"
_JSON = {"Content-Type": "application/json"}
_BASELINE_S = 5.0
_ATTACK_S = 15.0
_COLUMNS = (
    *("attack", "before: p50, ms", "p95", "worst", "meanwhile: p50, ms", "p95", "worst"),
    *("/livez: worst, ms", "memory", "answers"),
)

Attack = Callable[[httpx.AsyncClient, int], Awaitable[httpx.Response]]


def jpeg(width: int, height: int) -> bytes:
    image = Image.effect_noise((width // 16, height // 16), 60).resize((width, height))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=40)
    return file.getvalue()


async def run_length_masks(client: httpx.AsyncClient, number: int) -> httpx.Response:
    fields = {"task": "instance_segmentation", "phrase": "circle", "mask_format": "rle"}
    fields |= {"model": "paligemma-mini", "seed": str(number)}
    return await client.post("/v1/predict", data=fields, files={"image": _large_image()})


async def tiny_stored_images(client: httpx.AsyncClient, number: int) -> httpx.Response:
    image = png(Image.new("1", (1 + number % 100, 1 + number // 100)))
    return await client.post("/v1/images", files={"image": image})


async def many_members(client: httpx.AsyncClient, _number: int) -> httpx.Response:
    path = "/integrations/label-studio/predict"
    return await client.post(path, content=_members(), headers=_JSON)


async def large_base64(client: httpx.AsyncClient, _number: int) -> httpx.Response:
    body = b'{"task":"captioning","image":"' + _base64() + b'"}'
    return await client.post("/v1/predict", content=body, headers=_JSON)


async def many_tiles(client: httpx.AsyncClient, number: int) -> httpx.Response:
    fields = {"task": "ocr", "tiles": "8x8", "model": "florence-2-mini", "seed": str(number)}
    return await client.post("/v1/predict", data=fields, files={"image": _tiled_image()})


async def four_beams(client: httpx.AsyncClient, number: int) -> httpx.Response:
    fields = {"task": "captioning", "num_beams": "4", "model": "florence-2-mini"}
    return await client.post("/v1/predict", data=fields, files={"image": _scene(number % 64)})


# attack, its name, connections, the most requests of each
_ATTACKS: tuple[tuple[Attack, str, int, int], ...] = (
    (run_length_masks, "rle masks of 49 megapixels", 40, 1_000),
    (tiny_stored_images, "10,000 stored images of 84 bytes", 64, 157),
    (many_members, "JSON of 900,000 members", 6, 1_000),
    (large_base64, "19 MB of base64", 20, 1_000),
    (many_tiles, "64 tiles of 12 megapixels", 8, 1_000),
    (four_beams, "four beams", 200, 1_000),
)


@functools.cache
def _large_image() -> bytes:
    return jpeg(7_000, 7_000)


@functools.cache
def _tiled_image() -> bytes:
    return jpeg(4_000, 3_000)


@functools.cache
def _members() -> bytes:
    return json.dumps({f"name{number}": 0 for number in range(900_000)}).encode()


@functools.cache
def _base64() -> bytes:
    return base64.b64encode(os.urandom(14_000_000))


def client_of(url: str, key: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits)


def statuses_of(index: int, url: str) -> Counter[str]:
    """Attack for `_ATTACK_S`; return the numbers of answers by their status."""
    os.nice(19)
    attack, _, num_connections, num_requests = _ATTACKS[index]
    end_s = time.monotonic() + _ATTACK_S
    statuses = Counter[str]()

    async def connection(number: int) -> None:
        async with client_of(url, _HOSTILE) as client:
            for step in range(num_requests):
                if time.monotonic() > end_s:
                    return
                try:
                    response = await attack(client, number * num_requests + step)
                except httpx.TransportError as error:
                    statuses[type(error).__name__] += 1
                else:
                    statuses[str(response.status_code)] += 1

    async def connections() -> None:
        await asyncio.gather(*map(connection, range(num_connections)))

    asyncio.run(connections())
    return statuses


async def caption(client: httpx.AsyncClient, image: bytes) -> None:
    fields = {"task": "captioning", "model": "florence-2-mini"}
    response = await client.post("/v1/predict", data=fields, files={"image": image})
    response.raise_for_status()


async def seconds_of(request: Callable[[int], Awaitable[object]], pause_s: float) -> list[float]:
    """Repeat a request until cancelled; return the seconds of each."""
    seconds: list[float] = []
    with suppress(asyncio.CancelledError):
        while True:
            start_s = time.monotonic()
            await request(len(seconds))
            seconds.append(time.monotonic() - start_s)
            await asyncio.sleep(pause_s)
    return seconds


async def measured(url: str, until: Awaitable[object]) -> tuple[list[float], list[float]]:
    """Return the seconds of the polite client's captions, and of `/livez`, meanwhile."""
    async with client_of(url, _POLITE) as client:
        images = [_scene(seed) for seed in range(16)]
        tasks = [
            asyncio.ensure_future(seconds_of(lambda n: caption(client, images[n % 16]), 0.05)),
            asyncio.ensure_future(seconds_of(lambda _: client.get("/livez"), 0.02)),
        ]
        await until
        for task in tasks:
            task.cancel()
        captions, probes = await asyncio.gather(*tasks)
    return captions, probes


@functools.cache
def _scene(seed: int) -> bytes:
    return png(render_scene(evaluation_scene(seed)).resize((600, 400)))


async def until_done(attack: Future[Counter[str]]) -> None:
    await asyncio.wrap_future(attack)


def row(index: int, folder: Path) -> list[str]:
    """Start a service, measure an attack on it, and return the row of the table."""
    keys = (_POLITE, _HOSTILE)
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} name={key}\n" for key in keys]
    (folder / "keys").write_text("".join(lines), encoding="ascii")
    port = free_port()
    environment = {
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_API_KEYS_FILE": str(folder / "keys"),
        "DIPTYCH_IMAGES_FOLDER": str(folder / f"images-{index}"),
    }
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", environment)
    # a process of its own delays no measurement
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        running(launch, folder / f"service-{index}.log") as process_id,
    ):
        gateway = psutil.Process(part_ids(process_id)[_GATEWAY])
        asyncio.run(measured(launch.url, asyncio.sleep(2)))  # warms up
        before_bytes = gateway.memory_info().rss
        captions, _ = asyncio.run(measured(launch.url, asyncio.sleep(_BASELINE_S)))
        attack = pool.submit(statuses_of, index, launch.url)
        attacked, probes = asyncio.run(measured(launch.url, until_done(attack)))
        asyncio.run(measured(launch.url, asyncio.sleep(5)))
        after_bytes = gateway.memory_info().rss
    cells = map(_ms, (*_percentiles(captions), *_percentiles(attacked), max(probes)))
    answers = ", ".join(f"{count} × {status}" for status, count in attack.result().items())
    return [_ATTACKS[index][1], *cells, f"{after_bytes / before_bytes:.2f}", answers]


def _percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the 95th percentile and the maximum."""
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}"


def main() -> None:
    """Measure the attacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", type=int, help="numbers of the rows; default: all")
    numbers = parser.parse_args().attacks or range(len(_ATTACKS))
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(number, Path(folder)) for number in numbers]
    print(f"{processor_name()}, {psutil.cpu_count()} cores; memory: of the gateway, after / before")
    print(table(_COLUMNS, rows))


if __name__ == "__main__":
    main()
