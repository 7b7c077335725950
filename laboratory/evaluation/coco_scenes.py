"""Scenes as a dataset with COCO labels, for `diptych evaluate` and `diptych annotate`: images/ and
annotations.json.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from export.scenes.geometry import box_xyxy
from export.scenes.scene import CANVAS_PX, SHAPES
from laboratory.evaluation.client import evaluation_scene
from laboratory.evaluation.conditions import Condition


def write_coco_scenes(
    folder: Path, conditions: Iterable[Condition], scene_indices: Iterable[int]
) -> None:
    """Render evaluation scenes under every condition, with the boxes of their shapes as labels."""
    images = list[dict[str, object]]()
    annotations = list[dict[str, object]]()
    (folder / "images").mkdir(parents=True)
    conditions = tuple(conditions)
    for index in scene_indices:
        scene = evaluation_scene(index)
        for condition in conditions:
            image = condition(scene)
            image_id = len(images)
            width, height = image.size_wh
            name = f"{image_id:05}.{image.media_type.rpartition('/')[2]}"
            (folder / "images" / name).write_bytes(image.data)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for drawn in scene.objects:
                x1, y1, x2, y2 = (
                    v * s / CANVAS_PX
                    for v, s in zip(box_xyxy(drawn), image.size_wh * 2, strict=True)
                )
                ids = {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": SHAPES.index(drawn.shape),
                }
                annotations.append(
                    {**ids, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
                )
    categories = [{"id": index, "name": name} for index, name in enumerate(SHAPES)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document), encoding="utf-8")
