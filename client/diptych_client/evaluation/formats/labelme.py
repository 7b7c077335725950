"""LabelMe's JSON (wkentaro/labelme, `_label_file.py`): one file for each image, beside it.

Rectangles, polygons and circles (centre, point of the edge) are read, and of a mask its box.
"""

import json
import math
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    read_head,
    read_json,
)
from diptych_client.evaluation.formats.export import Export
from diptych_client.evaluation.questions import Record
from diptych_client.geometry import joined_rings
from diptych_client.inputs import files_below
from diptych_client.long_runs import RunError
from diptych_client.results import Instance, Item, box_of, category_of

_MAX_BYTES = 100_000_000  # the image may be within
_MAX_HEAD_BYTES = 100_000


def read_labelme(path: Path, selection: Selection) -> Dataset | None:
    folder = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else files_below(path, ".json")
    names = [name for name in names if path.is_file() or selection.includes(name)]
    names = [name for name in names if _is_labelme(folder / name)]
    if not names:
        return None
    store = selection.store(folder)

    def read(name: str, _place: str) -> LabelledImage:
        try:
            document: Any = read_json(folder / name, _MAX_BYTES)
        except RunError as error:
            raise ValueError(error) from error
        objects = selection.objects(folder / name, document["shapes"], _object)
        image_path = document["imagePath"].replace("\\", "/")
        beside = normpath((PurePosixPath(name).parent / image_path).as_posix())
        if not store.find(beside):  # by its end in another folder of images
            beside = store.find(f"/{image_path}") or PurePosixPath(image_path).name
        return LabelledImage(store.image(beside), objects)

    return Dataset(selection.labelled_images(path, names, read), store)


def _is_labelme(path: Path) -> bool:
    head = read_head(path, _MAX_HEAD_BYTES)
    return b'"shapes"' in head or b'"imageData"' in head


def _object(shape: Any) -> TrueObject:
    label = str(shape["label"])
    kind = shape.get("shape_type") or "polygon"
    points = shape["points"]
    if kind in ("polygon", "rotation"):
        return TrueObject.outlined(label, points)
    if kind == "circle":
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind not in ("rectangle", "mask"):
        raise ValueError(f"a {kind} has no box")
    xs, ys = zip(*points, strict=True)
    return TrueObject.boxed(label, (min(xs), min(ys), max(xs), max(ys)))


def write_labelme(export: Export) -> Path:
    return export.write_each("{split}", ".json", _document)


def _document(record: Record) -> str:
    document: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(map(_shape, record.items)),
        "imagePath": PurePosixPath(record.image.name).name,
        "imageData": None,
        "imageHeight": record.answer.image.height,
        "imageWidth": record.answer.image.width,
    }
    return json.dumps(document, indent=1)


def _shape(item: Item) -> dict[str, Any]:
    x1, y1, x2, y2 = box_of(item)
    shape = {"label": category_of(item), "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
    if isinstance(item, Instance) and item.polygons_xy:
        points = list(map(list, joined_rings(item.polygons_xy)))
        shape |= {"shape_type": "polygon", "points": points}
    return shape | {"group_id": None, "description": "", "flags": {}, "mask": None}
