"""Scenes with a shape that the embedded models have never seen, as a dataset with COCO labels.

In three of four scenes some objects are drawn as hexagons, upright or on a side. Boxes are labelled
on the grid of 8 bins that the embedded models write: the embeddings of other locations are
untrained.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.random import Generator, default_rng
from PIL import Image

from export.scenes import SceneObject, render_scene, sample_scene
from export.scenes.geometry import Ring, box_xyxy, ring_box_xyxy
from export.scenes.render import draw_ring
from export.scenes.scene import CANVAS_PX, SHAPES
from export.scenes.truth import LabelledBox
from tasks.florence2.locations import NUM_BINS

HEXAGON = "hexagon"
NAMES = (*SHAPES, HEXAGON)
# no training or evaluation of embedded models has them
FIRST_TRAINING_SEED = 600_000_000
FIRST_TEST_SEED = 700_000_000
_HEXAGON_SHARE = 0.4  # share of the objects of a scene with hexagons
_STEP_BINS = 8


@dataclass(frozen=True, slots=True)
class HexagonScene:
    """An image of `CANVAS_PX` and its objects, left to right."""

    image: Image.Image
    objects: tuple[LabelledBox, ...]

    @property
    def has_hexagon(self) -> bool:
        return any(each.label == HEXAGON for each in self.objects)


def hexagon_scene(seed: int) -> HexagonScene:
    """Return the scene of a seed, in three of four cases with hexagons."""
    scene = sample_scene(seed)
    rng = default_rng((seed, 6))
    share = _HEXAGON_SHARE if seed % 4 else 0.0
    hexagons = {each: _ring(each, rng) for each in scene.objects if rng.random() < share}
    image = render_scene(
        replace(scene, objects=tuple(each for each in scene.objects if each not in hexagons))
    )
    for drawn, ring in hexagons.items():
        draw_ring(image, ring, drawn.rgb)
    objects = (
        LabelledBox(HEXAGON, ring_box_xyxy(hexagons[each]))
        if each in hexagons
        else LabelledBox(each.shape, box_xyxy(each))
        for each in scene.objects
    )
    return HexagonScene(image, tuple(objects))


def named_scene(seed: int) -> HexagonScene:
    """Return the scene of a seed, labelled by colour and shape, without hexagons."""
    scene = sample_scene(seed)
    objects = tuple(LabelledBox(each.name, box_xyxy(each)) for each in scene.objects)
    return HexagonScene(render_scene(scene), objects)


def write_hexagon_coco(folder: Path, first_seed: int, num_scenes: int) -> Path:
    """Write images and `annotations.json` into `folder`."""
    scenes = [hexagon_scene(first_seed + index) for index in range(num_scenes)]
    return write_coco(folder, scenes)


def write_coco(folder: Path, scenes: Iterable[HexagonScene]) -> Path:
    """Write images and `annotations.json` into `folder`."""
    (folder / "images").mkdir(parents=True)
    images = list[dict[str, object]]()
    annotations = list[dict[str, object]]()
    names = dict[str, int]()
    for index, scene in enumerate(scenes):
        name = f"{index:05}.png"
        scene.image.save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "width": CANVAS_PX, "height": CANVAS_PX})
        for true in scene.objects:
            x1, y1, x2, y2 = map(_on_grid, true.box_xyxy)
            ids = {
                "id": len(annotations),
                "image_id": index,
                "category_id": names.setdefault(true.label, len(names)),
            }
            annotations.append(
                {**ids, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )
    categories = [{"id": number, "name": name} for name, number in names.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def _ring(drawn: SceneObject, rng: Generator) -> Ring:
    turn = math.pi / 6 * int(rng.integers(2))
    x, y = drawn.center_xy
    radius = drawn.radius_px
    angles = [turn + math.pi / 3 * corner for corner in range(6)]
    return tuple((x + radius * math.sin(angle), y - radius * math.cos(angle)) for angle in angles)


def _on_grid(position_px: float) -> float:
    """Return the centre of the nearest bin that is a multiple of `_STEP_BINS`."""
    bin_index = round((position_px * NUM_BINS / CANVAS_PX - 0.5) / _STEP_BINS) * _STEP_BINS
    return (bin_index + 0.5) * CANVAS_PX / NUM_BINS
