"""Measures what is found in large images, whole and in tiles: `python -m laboratory.tiles`.

Scenes of `laboratory/tile_scenes.py`. Prints recall, precision, duplicates and false boxes of each
model, at an IoU of 0.5 and with the label. `--peers` adds other libraries' tiles.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from export.scenes import SceneObject
from export.scenes.geometry import box_xyxy
from export.scenes.overlap import box_iou
from export.scenes.scene import SHAPES
from laboratory.evaluation.client import offered_tasks
from laboratory.evaluation.coco_scenes import labelled, write_coco
from laboratory.evaluation.service_process import service_process
from laboratory.tile_peers import NUM_CLIENTS, Detected, by_sahi, by_supervision
from laboratory.tile_scenes import GRID, KINDS, OVERLAP, SIZE_WH, LargeScene, scenes
from loadtest.figures import table
from tasks.tiles.grid import MAX_TILES, Grid, Tiling, grid_of, tile_boxes

MODELS = ("florence-2-mini", "paligemma-mini")
PEERS = {"InferenceSlicer": by_supervision, "SAHI": by_sahi}
MIN_IOU = 0.5
_TIMEOUT_S = 600


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


def measured(
    client: httpx.Client, model: str, tiles: str, shown: Sequence[LargeScene], min_score: float
) -> Counts:
    """Return the counts of a model; raise `httpx.HTTPStatusError` for an error."""
    fields: dict[str, Any] = {"model": model, "task": "object_detection", "min_score": min_score}
    if "object_detection" not in offered_tasks(client, model):
        fields |= {"task": "open_vocabulary_detection", "labels": list(SHAPES)}
    asked: dict[str, Any] = {}
    if tiles not in ("off", *PEERS):
        drawn = chain.from_iterable([scene.objects for scene in shown])
        smallest_px = round(min((2 * each.radius_px for each in drawn), default=16))
        asked = {"tiles": tiles, "overlap": OVERLAP, "min_object_px": smallest_px}

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
    add("--seed", type=int, default=0, metavar="N", help=f"other scenes; {default}")
    add("--scenes", type=int, default=5, metavar="N", help=f"of each kind; {default}")
    add("--sizes", nargs="*", type=int, default=[24, 48, 80], metavar="PX", help=default)
    add("--kinds", nargs="*", default=KINDS, help=default)
    add("--peers", nargs="*", default=[], choices=PEERS, help="libraries to compare with")
    add("--tiles", default="", help="such as auto; default: a grid of at most 63 tiles")
    add("--write", type=Path, metavar="FOLDER", help="write the images with COCO labels, and end")
    add("--min-score", type=float, default=0.5, help=default)
    given = parser.parse_args(arguments)
    kinds = [*(f"{size} px" for size in given.sizes), *given.kinds]
    if given.write:
        drawn = (scenes(kind, given.scenes, given.seed) for kind in kinds)
        write_coco(given.write, labelled(chain.from_iterable(drawn)))
        return
    settings = {
        "DIPTYCH_MODELS": ",".join(given.models),
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
        "DIPTYCH_MAX_TILES": str(MAX_TILES),
    }
    rows: list[list[str]] = []
    with service_process(NUM_CLIENTS, **settings) as client:
        client.timeout = httpx.Timeout(_TIMEOUT_S)
        for kind in kinds:
            shown = list(scenes(kind, given.scenes, given.seed))
            grid = grid_for(shown[0].image.size)
            ways = ("off", given.tiles or f"{grid.rows}x{grid.columns}", *given.peers)
            for model, tiles in product(given.models, ways):
                counts = measured(client, model, tiles, shown, given.min_score)
                rows.append([kind, model, tiles, *counts.cells()])
                print(*rows[-1], flush=True)
    columns = ["recall", "precision", "duplicates", "false boxes an image", "tiles asked", "s"]
    print(f"\n{table(['scenes', 'model', 'tiles', *columns], rows)}")


if __name__ == "__main__":
    main()
