"""Image files of scenes whose true answers are known, and datasets of them with COCO labels.

A condition renders a scene of the canvas into a file: each but `plain` changes its size, aspect
ratio, format or sharpness. Large images have small shapes, for answers in tiles.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageFilter

from export.scenes import (
    CANVAS_PX,
    COLOR_RGB,
    COLORS,
    SHAPES,
    BoxXYXY,
    Scene,
    SceneObject,
    box_xyxy,
    draw_ring,
    outline_xy,
    render_background,
    render_scene,
    sample_scene,
)
from tasks.tiles.grid import Grid, PixelBox, tile_boxes

PLAIN_PX = 384
_NO_OBJECT_EVERY = 10
# Training uses smaller seeds only.
_FIRST_SEED = 900_000_000
_FIRST_LARGE_SEED = 950_000_000
_LARGE_SIZE_WH = (2000, 1500)
_LARGE_GRID = Grid(3, 4)
_LARGE_SIZES_PX = (48.0, 400.0)
_SIZED_SHARES = (0.03, 0.33)  # shapes of many sizes, as shares of the side; training has 0.11 on
_SIZED_PX = 768


@dataclass(frozen=True, slots=True)
class SceneImage:
    """An encoded image file."""

    data: bytes
    media_type: str
    size_wh: tuple[int, int]


Boxes = Sequence[tuple[str, BoxXYXY]]  # with their labels
Labelled = tuple[SceneImage, Boxes]  # in pixels of the image


@dataclass(frozen=True, slots=True)
class Condition:
    """The side at which a scene is rendered, and what is done to the image and its file."""

    size_px: int = PLAIN_PX
    media: str = "PNG"
    blur: float = 0.0  # standard deviation of the Gaussian as a share of the side
    stretch: float = 1.0  # factor on the width

    def __call__(self, scene: Scene) -> SceneImage:
        """Return the file of a scene."""
        image = render_scene(scene, self.size_px)
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur * image.width))
        if self.stretch != 1:
            image = image.resize((round(self.stretch * image.width), image.height))
        return encoded(image, self.media)


CONDITIONS = {
    "plain": Condition(),
    "small": Condition(100),
    "large": Condition(2000),
    "jpeg": Condition(media="JPEG"),
    "blurred": Condition(blur=0.004),
    "stretched": Condition(stretch=1.5),
    # at these sides the embedded models err
    "40px": Condition(40),
    "22px": Condition(22),
}


def encoded(image: Image.Image, media: str = "PNG", quality: int = 60) -> SceneImage:
    """Return the image as PNG, at the lightest compression, or as JPEG."""
    file = io.BytesIO()
    image.save(file, media, quality=quality, compress_level=1)
    return SceneImage(file.getvalue(), f"image/{media.lower()}", image.size)


def evaluation_scene(index: int) -> Scene:
    """Return the scene with this index; every tenth has no object, and half of all have no word."""
    is_empty = index % _NO_OBJECT_EVERY == _NO_OBJECT_EVERY - 1
    return sample_scene(_FIRST_SEED + index, num_objects=0 if is_empty else None)


def rendered(conditions: Iterable[str], scene_indices: Iterable[int]) -> Iterator[Labelled]:
    """Yield evaluation scenes under every condition with the boxes of their shapes."""
    names = list(conditions)
    for index in scene_indices:
        scene = evaluation_scene(index)
        for name in names:
            yield scaled(CONDITIONS[name](scene), labelled_boxes(scene.objects))


def labelled_boxes(objects: Iterable[SceneObject]) -> Boxes:
    """Return the boxes of shapes in pixels of the canvas."""
    return [(drawn.shape, box_xyxy(drawn)) for drawn in objects]


def scaled(image: SceneImage, boxes: Boxes) -> Labelled:
    """Return an image with boxes of the canvas in its own pixels."""
    width, height = image.size_wh
    across = width / CANVAS_PX
    down = height / CANVAS_PX
    labels = []
    for label, (x1, y1, x2, y2) in boxes:
        labels.append((label, (x1 * across, y1 * down, x2 * across, y2 * down)))
    return image, labels


def write_coco(folder: Path, images: Iterable[Labelled], names: Sequence[str] = SHAPES) -> None:
    """Write images/ and annotations.json; `names` are the classes."""
    rows = []
    annotations = list[dict[str, object]]()
    (folder / "images").mkdir(parents=True)
    for image_id, (image, boxes) in enumerate(images):
        width, height = image.size_wh
        name = f"{image_id:05}.{image.media_type.rpartition('/')[2]}"
        (folder / "images" / name).write_bytes(image.data)
        rows.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for label, (x1, y1, x2, y2) in boxes:
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": names.index(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    document = {"images": rows, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


def large_images(num_images: int, seed: int) -> Iterator[Labelled]:
    """Yield images with a shape in each cell of a grid, every fourth textured and without any."""
    for index, (rng, background) in enumerate(_backgrounds(num_images, seed)):
        image = background.resize(_LARGE_SIZE_WH)
        if index % 4 == 3:
            levels = rng.integers(0, 256, (_LARGE_SIZE_WH[1] // 8, _LARGE_SIZE_WH[0] // 8, 3))
            texture = Image.fromarray(levels.astype(np.uint8)).resize(image.size)
            yield _drawn(Image.blend(image, texture, 0.3), [])
        else:
            cells = tile_boxes(_LARGE_GRID, image.size, 0.0)
            yield _drawn(image, _in_cells(rng, cells, _LARGE_SIZES_PX))


def images_of_all_sizes(num_images: int) -> Iterator[Labelled]:
    """Yield images with one to four shapes, each of another share of the side."""
    size_wh = (_SIZED_PX, _SIZED_PX)
    sizes_px = (_SIZED_SHARES[0] * _SIZED_PX, _SIZED_SHARES[1] * _SIZED_PX)
    for rng, background in _backgrounds(num_images, seed=0):
        cells = rng.permutation(tile_boxes(Grid(2, 2), size_wh, 0.0))
        chosen = cells[: rng.integers(1, len(cells) + 1)].tolist()
        yield _drawn(background.resize(size_wh), _in_cells(rng, chosen, sizes_px))


def _backgrounds(num_images: int, seed: int) -> Iterator[tuple[Generator, Image.Image]]:
    """Yield the random numbers and the background of each image."""
    first = _FIRST_LARGE_SEED + 1000 * seed
    for index in range(num_images):
        background = sample_scene(first + index, num_objects=0).background
        yield default_rng((first, index)), render_background(background, PLAIN_PX)


def _in_cells(
    rng: Generator, cells: Iterable[PixelBox], sizes_px: tuple[float, float]
) -> list[SceneObject]:
    """Return a shape at a random place of each cell, so that none touch."""
    objects = []
    for left, top, right, bottom in cells:
        radius = float(np.exp(rng.uniform(*np.log(sizes_px)))) / 2
        margin = radius + 4
        x = float(rng.uniform(left + margin, right - margin))
        y = float(rng.uniform(top + margin, bottom - margin))
        color = COLORS[int(rng.integers(len(COLORS)))]
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        objects.append(SceneObject(color, shape, "small", COLOR_RGB[color], (x, y), radius))
    return objects


def _drawn(image: Image.Image, objects: Sequence[SceneObject]) -> Labelled:
    for drawn in objects:
        draw_ring(image, outline_xy(drawn), drawn.rgb)
    return encoded(image, "JPEG", quality=95), labelled_boxes(objects)
