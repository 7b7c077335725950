"""COCO's JSON (cocodataset.org, data format): objects with boxes and segmentations, or captions."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import (
    Dataset,
    Folder,
    LabelledImage,
    TrueObject,
    path_within,
)
from diptych_client.evaluation.foreign_files import MALFORMED, read_json
from diptych_client.long_runs import RunError


def read_coco(path: Path, images: Path | None = None) -> Dataset:
    """Read an annotation file; its images are in `images`, or beside it as in COCO or Roboflow."""
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise RunError(f"{path} is not COCO: it has no list `images`")
    try:
        return _dataset(path, document, images)
    except MALFORMED as error:
        raise RunError(f"{path} is not COCO: {error!r:.200}") from error


def _dataset(path: Path, document: Mapping[str, Any], images: Path | None) -> Dataset:
    categories = {each["id"]: str(each["name"]) for each in document.get("categories", ())}
    annotations: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in document.get("annotations", ()):
        annotations[annotation["image_id"]].append(annotation)
    names = [each["file_name"] for each in document["images"]]
    folder = Folder(images or _image_folder(path, names))
    labelled = []
    for image in document["images"]:  # one without annotations has no object
        rows = annotations[image["id"]]
        captions = tuple(str(each["caption"]) for each in rows if "caption" in each)
        objects = tuple(_object(each, categories) for each in rows if "bbox" in each)
        found = LabelledImage(folder.image(image["file_name"]), captions=captions or None)
        labelled.append(replace(found, objects=objects) if categories else found)
    return Dataset(labelled, folder, tuple(categories.values()))


def _image_folder(path: Path, names: list[str]) -> Path:
    """Return the folder of the first image: of annotations/instances_val2017.json val2017/."""
    parent = path.parent
    beside = parent.parent
    split = path.stem.rpartition("_")[2]
    candidates = (parent, parent / "images", beside / "images", beside / split, beside)
    for candidate in candidates:
        if not names or path_within(candidate, names[0]).is_file():
            return candidate
    looked_in = ", ".join(map(str, candidates))
    hint = "give its folder with --images"
    raise RunError(f"{path}: the image {names[0]} is in none of {looked_in}: {hint}")


def _object(annotation: Mapping[str, Any], categories: Mapping[int, str]) -> TrueObject:
    x, y, width, height = map(float, annotation["bbox"])
    return TrueObject(
        categories[annotation["category_id"]],
        (x, y, x + width, y + height),
        annotation.get("segmentation") or None,
        annotation.get("area"),
        bool(annotation.get("iscrowd")),
    )
