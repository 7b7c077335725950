"""The gain and the cost of BentoML's adaptive batcher: `python -m export.bench.batching [MODEL]
[--batch-sizes N …]`.

Images go to a runner of the model (`python -m service runner MODEL`) as a gateway sends them, but
with no sequence to write: each call is one image to encode.

    encodes    images per second at 1, 4 and 16 clients, for each maximum batch size and one image
               at a time
    burst      p50 of a lone image one second after a burst of 64, and of one without a burst
"""

import argparse
import asyncio
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

import aiohttp
import numpy as np

from wire.artifacts.manifest import read_manifest
from wire.artifacts.model_store import artifact_folder
from wire.pixels import IMAGE_KEY_HEADER, Pixels, body_of
from wire.runner_messages import WriteCall

CLIENTS = (1, 4, 16)
_BURST = 64
_NUM_LONE = 5
_START_TIMEOUT_S = 300


class Runner:
    """A running runner and images for it."""

    def __init__(self, http: aiohttp.ClientSession, shape_hwc: tuple[int, int, int]) -> None:
        self._http = http
        self._pixels: Pixels = np.random.default_rng(0).integers(0, 256, shape_hwc, dtype=np.uint8)

    async def encode(self) -> float:
        """Encode an image under a new key; return the seconds that it took."""
        start_s = time.monotonic()
        body, headers = body_of(WriteCall(sequences=[]), self._pixels)
        headers[IMAGE_KEY_HEADER] = secrets.token_hex(16)
        async with self._http.post("/write", data=body, headers=headers) as response:
            await response.read()
        return time.monotonic() - start_s

    async def images_per_s(self, num_clients: int, seconds: float, is_serial: bool) -> float:
        """Return the throughput of a closed loop; serial: with one image in flight."""
        deadline_s = time.monotonic() + seconds
        num_encoded = 0
        lock = asyncio.Lock()

        async def client() -> None:
            nonlocal num_encoded
            while time.monotonic() < deadline_s:
                async with lock if is_serial else nullcontext():
                    await self.encode()
                num_encoded += 1

        start_s = time.monotonic()
        await asyncio.gather(*(client() for _ in range(num_clients)))
        return num_encoded / (time.monotonic() - start_s)

    async def lone_s(self, has_burst: bool) -> float:
        """Return the median of lone images, each one second after a burst or after nothing."""
        found = []
        for _ in range(_NUM_LONE):
            await asyncio.gather(*(self.encode() for _ in range(_BURST if has_burst else 0)))
            await asyncio.sleep(1)
            found.append(await self.encode())
        return statistics.median(found)


@asynccontextmanager
async def running_runner(model_id: str, max_batch_size: int) -> AsyncIterator[Runner]:
    """Start a runner, yield it when it is ready, and stop it."""
    port = _free_port()
    settings = {"DIPTYCH_PORT": str(port), "DIPTYCH_ENCODER_MAX_BATCH_SIZE": str(max_batch_size)}
    settings["DIPTYCH_VISION_CACHE_MB"] = "0"
    command = [sys.executable, "-m", "service", "runner", model_id]
    process = subprocess.Popen(
        command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    width, height = read_manifest(artifact_folder(model_id)).image_size_wh
    timeout = aiohttp.ClientTimeout(_START_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            raise_for_status=True,
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
        ) as http:
            await _ready(http)
            yield Runner(http, (height, width, 3))
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _ready(http: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            try:
                async with http.get("/readyz"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)


async def measure(model_id: str, batch_sizes: Sequence[int], seconds: float) -> None:
    """Print the tables."""
    print(f"{model_id}: images/s at {', '.join(map(str, CLIENTS))} clients")
    for max_batch_size in batch_sizes:
        async with running_runner(model_id, max_batch_size) as runner:
            await runner.images_per_s(1, seconds / 2, is_serial=False)  # warm up
            if max_batch_size == batch_sizes[0]:
                await _print_row("one at a time", runner, seconds, is_serial=True)
            await _print_row(f"batches up to {max_batch_size}", runner, seconds, is_serial=False)
            without = await runner.lone_s(has_burst=False)
            after = await runner.lone_s(has_burst=True)
            print(
                f"  lone image: {without * 1000:.1f} ms, one second after a burst of {_BURST}"
                f" {after * 1000:.1f} ms"
            )


async def _print_row(name: str, runner: Runner, seconds: float, is_serial: bool) -> None:
    found = [await runner.images_per_s(clients, seconds, is_serial) for clients in CLIENTS]
    print(f"  {name}: " + ", ".join(f"{each:.1f}" for each in found), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the model that the command line names."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.batching", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model", nargs="?", default="florence-2-mini", metavar="MODEL")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 16], metavar="N")
    parser.add_argument(
        "--seconds", type=float, default=5, metavar="S", help="of a cell; default %(default)s"
    )
    given = parser.parse_args(arguments)
    asyncio.run(measure(given.model, given.batch_sizes, given.seconds))


if __name__ == "__main__":
    main()
