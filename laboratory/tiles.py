"""Measures what is found in large images, whole and in tiles: `python -m laboratory.tiles`.

Scenes of 4000 x 3000 pixels with the shapes that the embedded models know: small ones of several
sizes, some on every seam and corner of the tiles, some larger than a tile, and none, on an even or
a textured background; a panorama and a receipt. Prints recall, precision, duplicates and false
boxes of each model, at an IoU of 0.5 and with the label. `--peers` adds other libraries' tiles.
"""

import argparse
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import httpx
import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image

from export.scenes import SceneObject, sample_scene
from export.scenes.geometry import box_xyxy, outline_xy
from export.scenes.overlap import box_iou
from export.scenes.render import draw_ring, render_background
from export.scenes.sampling import COLOR_RGB
from export.scenes.scene import COLORS, SHAPES
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.service_process import service_process
from laboratory.tile_peers import NUM_CLIENTS, Detected, by_sahi, by_supervision
from loadtest.figures import table
from tasks.tiles.grid import Grid, Tiling, grid_of, tile_boxes

SIZE_WH = (4000, 3000)
SIZES_WH = {"panorama": (12000, 1000), "receipt": (800, 6000)}  # others are of `SIZE_WH`
_SHAPE_PX = 80  # shapes on seams, and in images of another size
GRID = Grid(7, 9)
OVERLAP = 0.2
MODELS = ("florence-2-mini", "paligemma-mini")
KINDS = ("seams", "large", "empty", "textured", *SIZES_WH)
PEERS = {"InferenceSlicer": by_supervision, "SAHI": by_sahi}
MIN_IOU = 0.5
_BACKGROUND_PX = 384
_FIRST_SEED = 950_000_000  # training uses smaller seeds only
_JPEG_QUALITY = 95
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class LargeScene:
    """An image, its file, and the shapes in it."""

    image: Image.Image
    data: bytes
    objects: tuple[SceneObject, ...]


@dataclass(slots=True)
class Counts:
    """Boxes of some scenes."""

    num_scenes: int = 0
    num_objects: int = 0
    num_found: int = 0
    num_duplicates: int = 0
    num_false: int = 0
    num_asked: int = 0  # tiles
    seconds: list[float] = field(default_factory=list)

    def add(self, objects: Sequence[SceneObject], detections: Sequence[Mapping[str, Any]]) -> None:
        """Match the boxes with the objects, the best score first."""
        self.num_scenes += 1
        self.num_objects += len(objects)
        found = set[int]()
        for each in sorted(detections, key=lambda each: -float(each["score"])):
            ious = [_iou(each, drawn) for drawn in objects]
            best = int(np.argmax(ious)) if ious else -1
            if not ious or ious[best] < MIN_IOU:
                self.num_false += 1
            elif best in found:
                self.num_duplicates += 1
            else:
                found.add(best)
        self.num_found += len(found)

    def cells(self) -> list[str]:
        """Return the cells of a row."""
        num_boxes = self.num_found + self.num_duplicates + self.num_false
        return [
            _share(self.num_found, self.num_objects),
            _share(self.num_found, num_boxes),
            _share(self.num_duplicates, num_boxes),
            f"{self.num_false / self.num_scenes:.2f}",
            f"{self.num_asked / self.num_scenes:.0f}",
            f"{sum(self.seconds) / len(self.seconds):.1f}",
        ]


def _iou(detection: Mapping[str, Any], drawn: SceneObject) -> float:
    is_right = detection["label"] == drawn.shape
    return box_iou(detection["box"], box_xyxy(drawn)) if is_right else 0.0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def scenes(kind: str, num_scenes: int) -> Iterator[LargeScene]:
    """Yield the scenes of a kind: `N px`, `seams`, `large`, or one of `KINDS`."""
    size_wh = SIZES_WH.get(kind, SIZE_WH)
    for index in range(num_scenes):
        rng = default_rng((_FIRST_SEED, index))
        background = sample_scene(_FIRST_SEED + index, num_objects=0).background
        if kind == "seams":
            objects = shapes_on_seams(rng, _SHAPE_PX)
        elif kind == "large":
            objects = _in_cells(rng, Grid(1, 2), size_wh, 1200)
        elif kind in ("empty", "textured"):
            objects = ()
        elif kind in SIZES_WH:
            cells = Grid(max(1, size_wh[1] // 500), max(1, size_wh[0] // 500))
            objects = _in_cells(rng, cells, size_wh, _SHAPE_PX)
        else:
            objects = _in_cells(rng, Grid(5, 8), size_wh, int(kind.partition(" ")[0]))
        image = render_background(background, _BACKGROUND_PX).resize(size_wh)
        if kind == "textured":
            levels = rng.integers(0, 256, (size_wh[1] // 8, size_wh[0] // 8, 3), dtype=np.uint8)
            image = Image.blend(image, Image.fromarray(levels).resize(size_wh), 0.3)
        for drawn in objects:
            draw_ring(image, outline_xy(drawn), drawn.rgb)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        yield LargeScene(image, file.getvalue(), objects)


def _in_cells(
    rng: Generator, cells: Grid, size_wh: tuple[int, int], size_px: int
) -> tuple[SceneObject, ...]:
    """Return a shape at a random place of each cell of the image, so that none touch."""
    drawn: list[SceneObject] = []
    for left, top, right, bottom in tile_boxes(cells, size_wh, 0.0):
        margin = size_px / 2 + 4
        x = float(rng.uniform(left + margin, right - margin))
        y = float(rng.uniform(top + margin, bottom - margin))
        drawn.append(_shape(rng, (x, y), size_px))
    return tuple(drawn)


def shapes_on_seams(rng: Generator, size_px: int) -> tuple[SceneObject, ...]:
    """Return a shape on each inner corner of the tiles and in the middle of each inner edge."""
    boxes = tile_boxes(GRID, SIZE_WH, OVERLAP)
    columns = boxes[: GRID.columns]
    rows = boxes[:: GRID.columns]
    xs = [right for _, _, right, _ in columns[:-1]]
    ys = [bottom for _, _, _, bottom in rows[:-1]]
    middle_xs = [(left + right) // 2 for left, _, right, _ in columns]
    middle_ys = [(top + bottom) // 2 for _, top, _, bottom in rows]
    places = [*product(xs, ys), *product(xs, middle_ys), *product(middle_xs, ys)]
    return tuple(_shape(rng, (float(x), float(y)), size_px) for x, y in places)


def _shape(rng: Generator, center_xy: tuple[float, float], size_px: int) -> SceneObject:
    color = COLORS[int(rng.integers(len(COLORS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    return SceneObject(color, shape, "small", COLOR_RGB[color], center_xy, size_px / 2)


def measured(
    client: httpx.Client, model: str, tiles: str, shown: Sequence[LargeScene], min_score: float
) -> Counts:
    """Return the counts of a model; raise `httpx.HTTPStatusError` for an error."""
    fields: dict[str, Any] = {"model": model, "task": "object_detection", "min_score": min_score}
    if "object_detection" not in offered_tasks(client, model):
        fields |= {"task": "open_vocabulary_detection", "labels": list(SHAPES)}
    asked = {"tiles": tiles, "overlap": OVERLAP} if tiles not in ("off", *PEERS) else {}

    def answer(data: bytes) -> dict[str, Any]:
        response = client.post("/v1/predict", data=fields | asked, files={"image": data})
        found: dict[str, Any] = response.raise_for_status().json()
        counts.num_asked += 1 if tiles in PEERS else found.get("tiles", {}).get("asked", 0)
        return found

    def detections(data: bytes) -> Detected:
        found: Detected = answer(data)["result"]["detections"]
        return found

    counts = Counts()
    for scene in shown:
        start_s = time.monotonic()
        if tiles in PEERS:
            boxes = tile_boxes(grid_for(scene.image.size), scene.image.size, OVERLAP)
            found = PEERS[tiles](detections, scene.image, boxes)
        else:
            found = detections(scene.data)
        counts.seconds.append(time.monotonic() - start_s)
        counts.add(scene.objects, found)
    return counts


def grid_for(size_wh: tuple[int, int]) -> Grid:
    """Return the grid of an image, of at most as many tiles as `GRID`."""
    if size_wh == SIZE_WH:
        return GRID
    return grid_of(Tiling(GRID.num_tiles, OVERLAP, 1), size_wh, 1, GRID.num_tiles)


def main(arguments: Sequence[str] | None = None) -> None:
    """Start a service and print the table."""
    parser = argparse.ArgumentParser(
        "python -m laboratory.tiles", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    default = "default: %(default)s"
    add("--models", nargs="+", default=MODELS, metavar="ID", help=default)
    add("--scenes", type=int, default=5, metavar="N", help=f"of each kind; {default}")
    add("--sizes", nargs="+", type=int, default=[24, 48, 80], metavar="PX", help=default)
    add("--kinds", nargs="*", default=KINDS, help=default)
    add("--peers", nargs="*", default=[], choices=PEERS, help="libraries to compare with")
    add("--min-score", type=float, default=0.5, help=default)
    given = parser.parse_args(arguments)
    settings = {
        "DIPTYCH_MODELS": ",".join(given.models),
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
    }
    rows: list[list[str]] = []
    with service_process(NUM_CLIENTS, **settings) as client:
        client.timeout = httpx.Timeout(_TIMEOUT_S)
        for kind in [*(f"{size} px" for size in given.sizes), *given.kinds]:
            shown = list(scenes(kind, given.scenes))
            grid = grid_for(shown[0].image.size)
            ways = ("off", f"{grid.rows}x{grid.columns}", *given.peers)
            for model, tiles in product(given.models, ways):
                counts = measured(client, model, tiles, shown, given.min_score)
                rows.append([kind, model, tiles, *counts.cells()])
                print(*rows[-1], flush=True)
    columns = ["recall", "precision", "duplicates", "false boxes an image", "tiles asked", "s"]
    print(f"\n{table(['scenes', 'model', 'tiles', *columns], rows)}")


if __name__ == "__main__":
    main()
