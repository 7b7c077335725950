"""COCO's JSON (cocodataset.org, data format), with the variants of Roboflow, FiftyOne and LVIS.

It has objects with boxes [x, y, width, height] and segmentations, or captions. A segmentation is a
list of polygons, which COCO joins, or run lengths. A written document has run lengths where the
union of the polygons differs from the mask. FiftyOne has labels.json and its images in data/.
LVIS (lvisdataset.org) names images by their URL.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    class_name,
    classes_of,
    true_size,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.inputs import MALFORMED, Folder, Problems
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Record
from diptych_client.results import coco_document

_MAX_LOOKED_FOR = 20  # images of which some may be missing
_LVIS_NOTE = "LVIS labels some classes of each image only: the precision is too low"


def read_coco(path: Path, selection: Selection) -> Dataset:
    """Read an annotation file; its images are in `images`, or beside it as in COCO or Roboflow."""
    document = selection.json(path)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise RunError(f"{path} is not COCO: it has no list `images`")
    try:
        return _dataset(path, document, selection)
    except MALFORMED as error:
        raise RunError(f"{path} is not COCO: {error!r:.200}") from error


def _dataset(path: Path, document: Mapping[str, Any], selection: Selection) -> Dataset:
    problems = selection.problems
    categories = {}
    parents = set()
    rows = _by_id(path, "category", document.get("categories", ()), _category_name, problems)
    for category_id, category in rows.items():
        categories[category_id] = _category_name(category)
        if category.get("supercategory") != category["name"]:
            parents.add(str(category.get("supercategory")))
    rows = _by_id(path, "image", document["images"], _image_name, problems)
    folder = Folder(selection.images or _folder(path, list(map(_image_name, rows.values()))))
    images = {}
    sizes = {}
    for image_id, row in rows.items():
        with problems.leaving_out("image", f"{path}, image {_image_name(row)!r:.200}"):
            image = folder.image(_image_name(row))
            size_wh = true_size(folder.path / image.name, row.get("width"), row.get("height"))
            sizes[image_id] = size_wh
            images[image_id] = image
    objects: defaultdict[Any, list[TrueObject]] = defaultdict(list)
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    for number, annotation in enumerate(document.get("annotations", ()), 1):
        place = f"{path}, annotation {number}"
        if isinstance(annotation, Mapping) and annotation.get("id") is not None:
            place = f"{path}, annotation id {annotation['id']}"
        with problems.leaving_out("annotation", place):
            image_id = annotation["image_id"]
            if image_id not in images:
                raise ValueError(f"image_id {image_id!r} is not in `images`, or left out there")
            if "caption" in annotation:
                captions[image_id].append(str(annotation["caption"]))
                continue
            true = _object(annotation, categories).inside(sizes[image_id])
            with problems.leaving_out("outline", place):
                true = replace(true, segmentation=_segmentation(annotation))
            objects[image_id].append(true)
    labelled_images = []
    for image_id, image in images.items():  # one without annotations has no object
        true_objects = tuple(objects[image_id]) if document.get("categories") else None
        texts = tuple(captions[image_id]) or None
        labelled_images.append(LabelledImage(image, true_objects, texts))
    is_lvis = any("neg_category_ids" in image for image in document["images"][:1])
    note = _LVIS_NOTE if is_lvis else ""
    # Roboflow's category 0 groups the others
    parents -= set(classes_of(labelled_images))
    classes = tuple(name for name in categories.values() if name not in parents)
    return Dataset(labelled_images, folder, classes, note=note)


def _category_name(category: Mapping[str, Any]) -> str:
    return class_name(category["name"])


def _image_name(image: Mapping[str, Any]) -> str:
    name: str = image.get("file_name") or image["coco_url"]
    return name


def _by_id(
    path: Path, kind: str, rows: Iterable[Any], name_of: Callable[[Any], str], problems: Problems
) -> dict[Any, Any]:
    """Return images or categories by their id; of different ones that share it none is left."""
    by_id: dict[Any, Any] = {}
    repeated = set()
    for number, row in enumerate(rows, 1):
        with problems.leaving_out(kind, f"{path}, {kind} {number}"):
            name = name_of(row)
            first = by_id.setdefault(row["id"], row)
            if name_of(first) != name:
                repeated.add(row["id"])
                raise ValueError(
                    f"its id {row['id']!r:.40} is that of {name_of(first)!r:.200}, too"
                )
            if first is not row:
                problems.count(f"repeated {kind} left out")
    for row_id in repeated:
        place = f"{path}, {kind} {name_of(by_id.pop(row_id))!r:.200}"
        problems.add(place, f"its id {row_id!r:.40} is repeated", f"{kind} left out")
    return by_id


def _folder(path: Path, names: list[str]) -> Path:
    """Return the folder of the first images: of annotations/instances_val2017.json val2017/."""
    parent = path.parent
    beside = parent.parent
    split = path.stem.rpartition("_")[2]
    candidates = [parent, parent / "images", parent / "data", beside / "images"]
    candidates += [beside / "images" / split, beside / split, beside]
    for candidate in candidates:
        if not names or any(map(Folder(candidate).find, names[:_MAX_LOOKED_FOR])):
            return candidate
    folders = ", ".join(map(str, candidates))
    hint = "give its folder with --images"
    raise RunError(f"{path}: the image {names[0]} is in none of {folders}: {hint}")


def _object(annotation: Mapping[str, Any], categories: Mapping[int, str]) -> TrueObject:
    category = annotation["category_id"]
    if category not in categories:
        raise ValueError(f"category_id {category!r} is not in `categories`")
    x, y, width, height = map(float, annotation["bbox"])
    edges = (x, y, x + width, y + height)
    return TrueObject.boxed(categories[category], edges, bool(annotation.get("iscrowd")))


def _segmentation(annotation: Mapping[str, Any]) -> Any:
    """Return polygons or run lengths; raise `ValueError` or `KeyError` for another form."""
    value = annotation.get("segmentation") or None
    if isinstance(value, list):
        for ring in value:
            if len(list(map(float, ring))) < 6 or len(ring) % 2:
                raise ValueError(f"a polygon needs 3 points, got {len(ring)} numbers")
    elif value is not None and (len(value["size"]) != 2 or not value["counts"]):
        raise ValueError("run lengths need the `size` [height, width]")
    return value


def coco_of_records(records: Iterable[Record], classes: Mapping[str, int]) -> dict[str, Any]:
    """Return the COCO document; ids count from 1, each annotation has the `score` of its box."""
    images = []
    for number, record in enumerate(records, 1):
        images.append((number, record.image.name, record.answer))
    return coco_document(images, classes)


def write_coco(export: Export) -> Path:
    def document(records: Sequence[Record]) -> str:
        return json.dumps(coco_of_records(records, export.classes))

    return export.write_whole("annotations.json", document)
