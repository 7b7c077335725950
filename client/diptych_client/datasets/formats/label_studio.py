"""Label Studio's exports JSON and JSON-MIN, and its tasks with predictions.

Source: labelstud.io, "Label Studio JSON format", "Import pre-annotations". Coordinates are in
percent of the image; a rectangle is turned around its top left corner. Images are beside an export,
or in --images, under the name that was imported.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np

from diptych_client.datasets.dataset import Dataset, LabelledImage, Selection, TrueObject
from diptych_client.datasets.inputs import Folder, ImageFile
from diptych_client.datasets.records import Record
from diptych_client.geometry import ImageSize, joined_rings
from diptych_client.results import Instance, Item

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix of an uploaded file's name
_LOCAL_FILES = "/data/local-files/?d="  # local storage, relative to its document root


def read_label_studio(path: Path, selection: Selection) -> Dataset | None:
    document = selection.json(path)
    if not isinstance(document, list) or not document or not isinstance(document[0], Mapping):
        return None
    if not {"annotations", "image"} & document[0].keys():
        return None
    store = selection.store(path.parent)

    def read(task: Any, place: str) -> LabelledImage:
        captions: list[str] = []
        shapes = []
        regions = _regions(task)
        for result in regions or ():
            if (text := result.get("text")) and "x" not in result:
                captions += [text] if isinstance(text, str) else text
            elif "x" in result or "points" in result:
                shapes.append(result)
        data = task.get("data", task)
        urls = [data[name] for name in ("image", *data) if isinstance(data.get(name), str)]
        if not urls:
            raise ValueError("the task names no image")
        image = _imported_image(store, urls[0])
        if regions is None:
            return LabelledImage(image)
        objects = selection.objects(place, shapes, _region_object)
        return LabelledImage(image, objects, tuple(map(str, captions)) or None)

    return Dataset(selection.labelled_images(path, document, read), store)


def _regions(task: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the regions of JSON-MIN, or of the last annotation that was not cancelled, if any."""
    if "annotations" not in task:
        return list(
            chain.from_iterable(value for value in task.values() if isinstance(value, list))
        )
    regions = None
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            regions = [{**result, **result.get("value", {})} for result in annotation["result"]]
    return regions


def _region_object(result: Mapping[str, Any]) -> TrueObject:
    labels = result.get("rectanglelabels") or result.get("polygonlabels")
    if not labels:
        raise ValueError(f"a region of type {result.get('type', 'unknown')} has no box or polygon")
    label = str(labels[0])
    scale = np.array([float(result["original_width"]), float(result["original_height"])]) / 100
    if "points" in result:
        return TrueObject.outlined(label, np.asarray(result["points"], dtype=np.float64) * scale)
    corner = np.array([float(result["x"]), float(result["y"])]) * scale
    size = np.array([float(result["width"]), float(result["height"])]) * scale
    edges = (*corner, *(corner + size))
    x, y = corner.tolist()
    return TrueObject.rotated(label, edges, float(result.get("rotation", 0)), (x, y))


def _imported_image(store: Folder, url: str) -> ImageFile:
    """Return the file that ends like the URL, or has its name without the prefix of an upload."""
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d")  # a local storage has it
    path = local[0] if local else unquote(parts.path)
    name = PurePosixPath(path).name
    original = _UPLOADED.sub("", name)
    for candidate in (f"/{path}", f"/images/{name}", f"/{original}", f"/images/{original}"):
        if (end := store.find(candidate)) is not None:
            return store.image(end)
    hint = "give its folder with --images"
    raise ValueError(
        f"the image {name!r:.200} is neither in {store.path} nor in its images/: {hint}"
    )


def label_studio_task(records: Sequence[Record]) -> dict[str, Any]:
    """Return the task of an image with the answer of each model as a prediction."""
    predictions = []
    for record in records:
        regions = [_region(box, record.answer.image) for box in record.items]
        predictions.append({"model_version": record.answer.model, "result": regions})
    image = _LOCAL_FILES + quote(records[0].image.name)
    return {"data": {"image": image}, "predictions": predictions}


def _region(box: Item, image: ImageSize) -> dict[str, Any]:
    """Return a region with its place in percent of the image's sides."""
    to_x = 100 / image.width
    to_y = 100 / image.height
    if isinstance(box, Instance) and box.polygons_xy:
        kind = "polygonlabels"
        points = [[x * to_x, y * to_y] for x, y in joined_rings(box.polygons_xy)]
        place: dict[str, Any] = {"points": points}
    else:
        kind = "rectanglelabels"
        x1, y1, x2, y2 = box.box_xyxy
        place = {"x": x1 * to_x, "y": y1 * to_y, "rotation": 0}
        place |= {"width": (x2 - x1) * to_x, "height": (y2 - y1) * to_y}
    return {
        "from_name": "label",
        "to_name": "image",
        "type": kind,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": box.score,
        "value": {**place, kind: [box.category]},
    }
