"""Scenes as a dataset with COCO labels, for `diptych evaluate` and `diptych annotate`: images/ and
annotations.json.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from export.scenes.geometry import box_xyxy
from export.scenes.scene import CANVAS_PX, SHAPES, BoxXYXY
from laboratory.evaluation.client import evaluation_scene
from laboratory.evaluation.conditions import Condition, SceneImage
from laboratory.tile_scenes import LargeScene

Labelled = tuple[SceneImage, Sequence[tuple[str, BoxXYXY]]]  # boxes in pixels of the image


def write_coco(folder: Path, labelled: Iterable[Labelled], names: Sequence[str] = SHAPES) -> None:
    """Write images with boxes as labels; `names` are the classes."""
    images = list[dict[str, object]]()
    annotations = list[dict[str, object]]()
    (folder / "images").mkdir(parents=True)
    for image_id, (image, objects) in enumerate(labelled):
        width, height = image.size_wh
        name = f"{image_id:05}.{image.media_type.rpartition('/')[2]}"
        (folder / "images" / name).write_bytes(image.data)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for label, (x1, y1, x2, y2) in objects:
            ids = {
                "id": len(annotations),
                "image_id": image_id,
                "category_id": names.index(label),
            }
            bbox = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({**ids, "bbox": bbox, "area": bbox[2] * bbox[3]})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")


def labelled(rendered: Iterable[LargeScene]) -> Iterator[Labelled]:
    """Yield large images with the boxes of their shapes."""
    for scene in rendered:
        image = SceneImage(scene.data, "image/jpeg", scene.image.size)
        yield image, [(drawn.shape, box_xyxy(drawn)) for drawn in scene.objects]


def rendered(conditions: Sequence[Condition], scene_indices: Iterable[int]) -> Iterator[Labelled]:
    """Yield evaluation scenes under every condition with the boxes of their shapes."""
    for index in scene_indices:
        scene = evaluation_scene(index)
        boxes = [(drawn.shape, box_xyxy(drawn)) for drawn in scene.objects]
        for condition in conditions:
            yield scaled(condition(scene), boxes)


def scaled(
    image: SceneImage, objects: Iterable[tuple[str, BoxXYXY]], side_px: float = CANVAS_PX
) -> Labelled:
    """Return an image with boxes of a square of `side_px`, the canvas, in its own pixels."""
    width, height = image.size_wh
    across = width / side_px
    down = height / side_px
    labels = []
    for label, (x1, y1, x2, y2) in objects:
        labels.append((label, (x1 * across, y1 * down, x2 * across, y2 * down)))
    return image, labels
