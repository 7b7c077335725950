"""COCO's JSON (cocodataset.org, data format): objects with boxes and segmentations, or captions."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    four_numbers,
    true_box,
)
from diptych_client.inputs import Folder, Problems
from diptych_client.inputs.files import path_within
from diptych_client.inputs.problems import MALFORMED
from diptych_client.long_runs import RunError


def read_coco(path: Path, document: Any, problems: Problems, images: Path | None = None) -> Dataset:
    """Read an annotation file; its images are in `images`, or beside it as in COCO or Roboflow."""
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise RunError(f"{path} is not COCO: it has no list `images`")
    try:
        return _dataset(path, document, images, problems)
    except MALFORMED as error:
        raise RunError(f"{path} is not COCO: {error!r:.200}") from error


def _dataset(
    path: Path, document: Mapping[str, Any], images: Path | None, problems: Problems
) -> Dataset:
    categories = {}
    for number, each in enumerate(document.get("categories", ()), 1):
        with problems.leaving_out("category", path, f"category {number}"):
            categories[each["id"]] = str(each["name"])
    rows = {}
    for number, image in enumerate(document["images"], 1):
        with problems.leaving_out("image", path, f"image {number}"):
            rows[image["id"]] = image["file_name"]
    objects: defaultdict[Any, list[TrueObject]] = defaultdict(list)
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    for number, annotation in enumerate(document.get("annotations", ()), 1):
        with problems.leaving_out("annotation", path, _place(annotation, number)):
            image_id = annotation["image_id"]
            if image_id not in rows:
                raise ValueError(f"image_id {image_id!r} is not in `images`")
            if "caption" in annotation:
                captions[image_id].append(str(annotation["caption"]))
            else:
                found = _object(annotation, categories)
                with problems.leaving_out("outline", path, _place(annotation, number)):
                    found = replace(found, segmentation=_segmentation(annotation))
                objects[image_id].append(found)
    folder = Folder(images or _image_folder(path, list(rows.values())))
    labelled = []
    for image_id, name in rows.items():  # one without annotations has no object
        texts = tuple(captions[image_id])
        found_image = LabelledImage(folder.image(name), captions=texts or None)
        own = tuple(objects[image_id])
        labelled.append(replace(found_image, objects=own) if categories else found_image)
    return Dataset(labelled, folder, tuple(categories.values()))


def _place(annotation: Any, number: int) -> str:
    given = annotation.get("id") if isinstance(annotation, Mapping) else None
    return f"annotation {number}" if given is None else f"annotation id {given}"


def _image_folder(path: Path, names: list[str]) -> Path:
    """Return the folder of the first image: of annotations/instances_val2017.json val2017/."""
    parent = path.parent
    beside = parent.parent
    split = path.stem.rpartition("_")[2]
    candidates = [parent, parent / "images", beside / "images", beside / "images" / split]
    candidates += [beside / split, beside]
    for candidate in candidates:
        if not names or path_within(candidate, names[0]).is_file():
            return candidate
    looked_in = ", ".join(map(str, candidates))
    hint = "give its folder with --images"
    raise RunError(f"{path}: the image {names[0]} is in none of {looked_in}: {hint}")


def _object(annotation: Mapping[str, Any], categories: Mapping[int, str]) -> TrueObject:
    category = annotation["category_id"]
    if category not in categories:
        raise ValueError(f"category_id {category!r} is not in `categories`")
    x, y, width, height = four_numbers(annotation["bbox"], annotation["bbox"])
    box = true_box((x, y, x + width, y + height), annotation["bbox"])
    area = annotation.get("area")
    return TrueObject(
        categories[category],
        box,
        area=None if area is None else float(area),
        is_crowd=bool(annotation.get("iscrowd")),
    )


def _segmentation(annotation: Mapping[str, Any]) -> Any:
    """Return polygons or run lengths; raise `ValueError` or `KeyError` for another form."""
    value = annotation.get("segmentation") or None
    if isinstance(value, list):
        for ring in value:
            if len([float(number) for number in ring]) < 6 or len(ring) % 2:
                raise ValueError(f"a polygon needs 3 points, got {len(ring)} numbers")
    elif value is not None and len(value["size"]) != 2 and value["counts"]:
        raise ValueError("run lengths need the `size` [height, width]")
    return value
