"""CreateML's JSON (Apple, "Building an object detector data source"): centres and sizes of boxes.

[{"image": "a.png", "annotations": [{"label": "cat", "coordinates": {"x": 25, "y": 20, …}}]}]
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import Dataset, LabelledImage, Selection, TrueObject


def read_createml(path: Path, selection: Selection) -> Dataset | None:
    document = selection.json(path)
    first = document[0] if isinstance(document, list) and document else None
    if not isinstance(first, Mapping) or not {"image", "annotations"} <= first.keys():
        return None
    store = selection.store(path.parent)

    def read(entry: Any, place: str) -> LabelledImage:
        objects = selection.objects(place, entry["annotations"], _object)
        return LabelledImage(store.image(entry["image"]), objects)

    return Dataset(selection.labelled_images(path, document, read), store)


def _object(annotation: Any) -> TrueObject:
    x, y, width, height = (annotation["coordinates"][key] for key in ("x", "y", "width", "height"))
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return TrueObject.boxed(annotation["label"], edges)
