"""Measures the cost of large images in tiles: `python -m laboratory.tile_cost`.

An image of 12 megapixels in 4 x 5 tiles is one request, or each tile is a separate one: all at
once, and one after another. They alternate in one run. No image is sent twice: no cache answers.
Prints the ratios of both times, median, least and most of the rounds; then how many tiles of a
photograph with few things in it are asked about.
"""

import argparse
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, product
from statistics import median
from typing import Any

import httpx
import numpy as np
from numpy.random import default_rng
from PIL import Image

from export.scenes import SceneObject
from export.scenes.geometry import outline_xy
from export.scenes.render import draw_ring
from export.scenes.sampling import COLOR_RGB
from export.scenes.scene import COLORS, SHAPES
from laboratory.evaluation.service_process import service_process
from laboratory.tile_scenes import OVERLAP, LargeScene, scenes
from laboratory.tiles import MODELS, Counts
from loadtest.figures import table
from loadtest.processes import cpu_s_by_process
from tasks.tiles.grid import Grid, tile_boxes

GRID = Grid(4, 5)
SPARSE_TILES = "7x9"
_FIELDS = {"task": "open_vocabulary_detection", "labels": list(SHAPES), "min_score": 0.5}
_SHAPE_PX = 80
_NOISE_LEVELS = 2.5  # standard deviation, as of a camera's sensor
_JPEG_QUALITY = 95
_TIMEOUT_S = 600

Send = Callable[[bytes, dict[str, Any]], dict[str, Any]]


@dataclass(slots=True)
class Times:
    """Of the rounds of a way to ask, in seconds."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # processor time, all of the service


def unseen(data: bytes, number: int) -> bytes:
    """Return a JPEG of the same pixels, with a comment that makes it another image."""
    return data[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4) + data[2:]


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def sparse_scenes(num_scenes: int) -> Iterator[LargeScene]:
    """Yield images with six shapes and the noise of a sensor."""
    for index, empty in enumerate(scenes("empty", num_scenes)):
        rng = default_rng(index)
        image = empty.image
        objects: list[SceneObject] = []
        for left, top, right, bottom in tile_boxes(Grid(2, 3), image.size, 0.0):
            x = float(rng.uniform(left + _SHAPE_PX, right - _SHAPE_PX))
            y = float(rng.uniform(top + _SHAPE_PX, bottom - _SHAPE_PX))
            color = COLORS[int(rng.integers(len(COLORS)))]
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
            rgb = COLOR_RGB[color]
            objects.append(SceneObject(color, shape, "small", rgb, (x, y), _SHAPE_PX / 2))
            draw_ring(image, outline_xy(objects[-1]), rgb)
        levels = np.asarray(image) + rng.normal(0, _NOISE_LEVELS, (*reversed(image.size), 3))
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        yield LargeScene(image, jpeg(image), tuple(objects))


def measured(send: Send, scene: LargeScene, num_rounds: int) -> dict[str, Times]:
    """Return the times of each way to ask about an image in tiles."""
    numbers = count()
    boxes = tile_boxes(GRID, scene.image.size, OVERLAP)
    singles = [jpeg(scene.image.crop(box)) for box in boxes]
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
    parser.add_argument("--sparse", type=int, default=5, metavar="N", help="sparse images")
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
            counts = Counts()
            for sparse in sparse_scenes(given.sparse):
                answer = send(sparse.data, {"tiles": SPARSE_TILES, "overlap": OVERLAP})
                counts.num_asked += answer["tiles"]["asked"]
                counts.add(sparse.objects, answer["result"]["detections"])
            found = f"{counts.num_found} of {counts.num_objects} shapes are found"
            print(f"{model}: {found}, {counts.num_asked} tiles of {given.sparse} images asked")
    columns = ["model", "compared with", "time", "tiles", "single", "ratio", "least", "most"]
    print(f"\n{table(columns, rows)}")


if __name__ == "__main__":
    main()
