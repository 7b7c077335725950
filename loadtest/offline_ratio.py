"""Images per second of `python -m offline` and of the service, on the same images, in turns.

    python -m loadtest.offline_ratio [--model ID] [--task ID] [--images N] [--rounds N]

Clients in a closed loop send the images to the service over REST, more at a time than its decoder
has slots. Both are measured without their start, and without a cache of image features: no image is
known. The model must be exported (`make export`).
"""

import argparse
import asyncio
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp

from loadtest.figures import shown
from loadtest.load.traffic.scenes import Scenes
from loadtest.load.traffic.traffic_mix import Images, ImageSize
from loadtest.processes import ROOT, Launch, ServerError, free_port, running, use_by_name

_NUM_CLIENTS = 32  # twice the slots, as offline
_SIZE_WH = (640, 480)
_SEED = 7
_TIMEOUT_S = 600
_SAMPLE_S = 0.5
_RATE = re.compile(r"([\d.]+) images/s$", re.MULTILINE)


def measure(model: str, task: str, num_images: int, num_rounds: int) -> list[tuple[float, float]]:
    """Return images per second of each round, of the service and offline."""
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": model,
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_VISION_CACHE_MB": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
    }
    service = Launch((sys.executable, "-m", "service"), port, "/readyz", environment)
    rounds = []
    with (
        tempfile.TemporaryDirectory() as name,
        running(service, ROOT / "build" / "offline_ratio.log"),
    ):
        images = _written(Path(name) / "images", num_images)
        asyncio.run(_served(service.url, model, task, images[:_NUM_CLIENTS]))
        for index in range(num_rounds):
            served = asyncio.run(_served(service.url, model, task, images))
            offline = _offline(model, task, Path(name) / "images", Path(name) / f"answers-{index}")
            rounds.append((served, offline))
            print(f"service {shown(served)}, offline {shown(offline)} images/s", flush=True)
    return rounds


def _written(folder: Path, num_images: int) -> list[Path]:
    """Write different images; return their files."""
    folder.mkdir()
    scenes = Scenes(Images(1, (ImageSize(*_SIZE_WH, 1),)), random.Random(_SEED))
    files = [folder / f"{index:06}.jpg" for index in range(num_images)]
    for file in files:
        file.write_bytes(scenes.next().jpeg)
    return files


async def _served(url: str, model: str, task: str, images: Sequence[Path]) -> float:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout, raise_for_status=True
    ) as http:
        left = iter(images)
        start_s = time.monotonic()
        await asyncio.gather(*(_client(http, model, task, left) for _ in range(_NUM_CLIENTS)))
        return len(images) / (time.monotonic() - start_s)


async def _client(http: aiohttp.ClientSession, model: str, task: str, left: Iterator[Path]) -> None:
    for image in left:
        form = aiohttp.FormData({"task": task, "model": model})
        form.add_field("image", image.read_bytes(), filename=image.name, content_type="image/jpeg")
        async with http.post("/v1/predict", data=form) as response:
            await response.read()


def _offline(model: str, task: str, images: Path, output: Path) -> float:
    options = ("--task", task, "--model", model, "--output", str(output))
    command = (sys.executable, "-m", "offline", str(images), *options)
    memory_mb = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            # the model's
            memory_mb.append(
                max((use.memory_mb for use in use_by_name(run.pid).values()), default=0.0)
            )
            time.sleep(_SAMPLE_S)
        printed = run.stdout.read() if run.stdout else ""
    rate = _RATE.search(printed)
    if run.returncode or rate is None:
        raise ServerError(f"the offline run ended with status {run.returncode}: {printed}")
    parts = (
        statistics.median(memory_mb[len(memory_mb) * part // 8 :][: len(memory_mb) // 8])
        for part in (4, 5, 6)
    )
    print(
        f"memory of the model's process, {', '.join(map(shown, parts))} MB in three eighths of the"
        " run, from its half"
    )
    return float(rate[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(
        "python -m loadtest.offline_ratio", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--model", default="florence-2-mini", metavar="ID", help="default %(default)s"
    )
    parser.add_argument("--task", default="captioning", metavar="ID", help="default %(default)s")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    given = parser.parse_args(arguments)
    rounds = measure(given.model, given.task, given.images, given.rounds)
    ratio = statistics.median(offline / served for served, offline in rounds)
    served, offline = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(f"medians: service {shown(served)}, offline {shown(offline)} images/s; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
