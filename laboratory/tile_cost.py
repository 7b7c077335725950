"""Measures the cost of large images in tiles: `python -m laboratory.tile_cost`.

An image of 12 megapixels in 4 x 5 tiles is one request, or each tile is a separate one: all at once,
and one after another. They alternate in one run. No image is sent twice, so that no cache answers.
Prints the ratios of both times, median, least and most of the rounds.
"""

import argparse
import io
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, product
from statistics import median
from typing import Any

import httpx

from laboratory.evaluation.service_process import service_process
from laboratory.tiles import MODELS, OVERLAP, LargeScene, scenes
from loadtest.figures import table
from loadtest.processes import cpu_s_by_process
from tasks.tiles.grid import Grid, PixelBox, tile_boxes

GRID = Grid(4, 5)
_FIELDS = {"task": "open_vocabulary_detection", "labels": ["circle", "star", "square", "triangle"]}
_JPEG_QUALITY = 95
_TIMEOUT_S = 600

Send = Callable[[bytes, dict[str, Any]], dict[str, Any]]


@dataclass(slots=True)
class Times:
    """Of the rounds of a way to ask, in seconds."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # processor time, all of the service


def unseen(jpeg: bytes, number: int) -> bytes:
    """Return a file of the same pixels, with a comment that makes it another image."""
    return jpeg[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4) + jpeg[2:]


def tile_files(scene: LargeScene, boxes: Sequence[PixelBox]) -> list[bytes]:
    files: list[bytes] = []
    for box in boxes:
        file = io.BytesIO()
        scene.image.crop(box).save(file, "JPEG", quality=_JPEG_QUALITY)
        files.append(file.getvalue())
    return files


def measured(send: Send, scene: LargeScene, num_rounds: int) -> dict[str, Times]:
    """Return the times of each way to ask about an image in tiles."""
    numbers = count()
    singles = tile_files(scene, tile_boxes(GRID, scene.image.size, OVERLAP))
    tiled = {"tiles": f"{GRID.rows}x{GRID.columns}", "overlap": OVERLAP}

    def in_tiles() -> None:
        send(unseen(scene.data, next(numbers)), tiled)

    def at_once() -> None:
        files = [unseen(each, next(numbers)) for each in singles]
        with ThreadPoolExecutor(len(files)) as threads:
            list(threads.map(lambda file: send(file, {}), files))

    def in_turn() -> None:
        for each in singles:
            send(unseen(each, next(numbers)), {})

    ways = {"in tiles": in_tiles, "single, at once": at_once, "single, in turn": in_turn}
    times = {name: Times() for name in ways}
    for number in range(num_rounds + 1):
        for name, way in ways.items():
            start_s = time.monotonic()
            start_cpu_s = service_cpu_s()
            way()
            if number > 0:  # the first one warms up
                times[name].wall_s.append(time.monotonic() - start_s)
                times[name].cpu_s.append(service_cpu_s() - start_cpu_s)
    return times


def service_cpu_s() -> float:
    """Return the processor time of all processes that this one has started."""
    own = os.getpid()
    return sum(spent for process, spent in cpu_s_by_process(own).items() if process != own)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a service and print the tables."""
    parser = argparse.ArgumentParser("python -m laboratory.tile_cost")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="ID")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    given = parser.parse_args(arguments)
    settings = {
        "DIPTYCH_MODELS": ",".join(given.models),
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
    }
    rows: list[list[str]] = []
    with service_process(GRID.num_tiles, **settings) as client:
        client.timeout = httpx.Timeout(_TIMEOUT_S)
        (scene,) = scenes("80 px", 1)
        for model in given.models:

            def send(data: bytes, more: dict[str, Any], model: str = model) -> dict[str, Any]:
                asked = _FIELDS | {"model": model} | more
                response = client.post("/v1/predict", data=asked, files={"image": data})
                answer: dict[str, Any] = response.raise_for_status().json()
                return answer

            times = measured(send, scene, given.rounds)
            for name, measure in product(list(times)[1:], ("wall_s", "cpu_s")):
                ours = getattr(times["in tiles"], measure)
                others = getattr(times[name], measure)
                ratios = [one / other for one, other in zip(ours, others, strict=True)]
                figures = (median(ours), median(others), median(ratios), min(ratios), max(ratios))
                rows.append([model, name, measure, *(f"{each:.2f}" for each in figures)])
                print(*rows[-1], flush=True)
    columns = ["model", "compared with", "time", "tiles", "single", "ratio", "least", "most"]
    print(f"\n{table(columns, rows)}")


if __name__ == "__main__":
    main()
