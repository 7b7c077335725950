"""Scenes that no training has seen, and datasets of images with COCO labels."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from export.scenes import CANVAS_PX, SHAPES, BoxXYXY, Scene, SceneObject, box_xyxy, sample_scene

PLAIN_PX = 384
_NO_OBJECT_EVERY = 10
# Training uses smaller seeds only.
_FIRST_SEED = 900_000_000

Labelled = tuple[Image.Image, Sequence[tuple[str, BoxXYXY]]]  # boxes in pixels, with their labels


def evaluation_scene(index: int) -> Scene:
    """Return the scene with this index; every tenth has no object, and half of all have no word."""
    is_empty = index % _NO_OBJECT_EVERY == _NO_OBJECT_EVERY - 1
    return sample_scene(_FIRST_SEED + index, num_objects=0 if is_empty else None)


def png(image: Image.Image) -> bytes:
    """Return the file of an image, at the lightest compression."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def labelled(image: Image.Image, objects: Iterable[SceneObject]) -> Labelled:
    """Return an image of a whole canvas with the boxes of shapes in its pixels."""
    across = image.width / CANVAS_PX
    down = image.height / CANVAS_PX
    boxes = []
    for drawn in objects:
        x1, y1, x2, y2 = box_xyxy(drawn)
        boxes.append((drawn.shape, (x1 * across, y1 * down, x2 * across, y2 * down)))
    return image, boxes


def write_coco(folder: Path, images: Iterable[Labelled], names: Sequence[str] = SHAPES) -> None:
    """Write images/ and annotations.json; `names` are the classes."""
    rows = []
    annotations = list[dict[str, object]]()
    (folder / "images").mkdir(parents=True)
    for image_id, (image, boxes) in enumerate(images):
        name = f"{image_id:05}.png"
        (folder / "images" / name).write_bytes(png(image))
        row = {"id": image_id, "file_name": name, "width": image.width, "height": image.height}
        rows.append(row)
        for label, (x1, y1, x2, y2) in boxes:
            annotation = {"id": len(annotations), "image_id": image_id}
            annotation["category_id"] = names.index(label)
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({**annotation, "bbox": bbox, "area": bbox[2] * bbox[3]})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    document = {"images": rows, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
