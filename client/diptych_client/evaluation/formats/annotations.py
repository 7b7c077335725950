"""Label files of four tools, and what `annotate` writes for two of them.

COCO's JSON (cocodataset.org, data format) has objects with boxes [x, y, width, height] and
segmentations, or captions. A segmentation is a list of polygons, which COCO joins, or run lengths.
A written document has run lengths where the union of the polygons differs from the mask.

Label Studio's exports JSON and JSON-MIN, and its tasks (labelstud.io, "Label Studio JSON format",
"Import pre-annotations"). Coordinates are in percent of the image; a rectangle is turned around its
top left corner. Images are beside an export, or in --images, under the name that was imported.

Pascal VOC has one XML file for each image, in Annotations/ or beside the image, in JPEGImages/ or
images/; splits in ImageSets/Main/….txt or in folders. A box counts pixels from 1 and includes its
last ones (VOC2012 development kit, section 3): [xmin - 1, ymin - 1, xmax, ymax] are its edges.
Objects marked difficult count neither as found nor as missed, as in VOC's own evaluation.

CVAT has all images in annotations.xml (docs.cvat.ai, "CVAT for image"), with edges in pixels.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    classes_of,
    outlined,
    read_text,
    read_xml,
    rotated,
    true_box,
)
from diptych_client.evaluation.formats.yolo import joined_rings
from diptych_client.evaluation.questions import Record
from diptych_client.geometry import ImageSize
from diptych_client.inputs import MALFORMED, SUFFIXES, Folder, ImageFile, path_within
from diptych_client.long_runs import RunError
from diptych_client.results import Instance, Item, box_of, category_of, coco_document

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # prefix of an uploaded file's name
_LOCAL_FILES = "/data/local-files/?d="  # local storage, relative to its document root
_MAX_CVAT_BYTES = 200_000_000  # all images are in one file


def read_coco(path: Path, document: Any, selection: Selection) -> Dataset:
    """Read an annotation file; its images are in `images`, or beside it as in COCO or Roboflow."""
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise RunError(f"{path} is not COCO: it has no list `images`")
    try:
        return _coco_dataset(path, document, selection)
    except MALFORMED as error:
        raise RunError(f"{path} is not COCO: {error!r:.200}") from error


def _coco_dataset(path: Path, document: Mapping[str, Any], selection: Selection) -> Dataset:
    problems = selection.problems
    categories = {}
    for number, category in enumerate(document.get("categories", ()), 1):
        with problems.leaving_out("category", f"{path}, category {number}"):
            categories[category["id"]] = str(category["name"])
    file_names = {}
    for number, image in enumerate(document["images"], 1):
        with problems.leaving_out("image", f"{path}, image {number}"):
            file_names[image["id"]] = image["file_name"]
    objects: defaultdict[Any, list[TrueObject]] = defaultdict(list)
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    for number, annotation in enumerate(document.get("annotations", ()), 1):
        place = f"{path}, annotation {number}"
        if isinstance(annotation, Mapping) and annotation.get("id") is not None:
            place = f"{path}, annotation id {annotation['id']}"
        with problems.leaving_out("annotation", place):
            image_id = annotation["image_id"]
            if image_id not in file_names:
                raise ValueError(f"image_id {image_id!r} is not in `images`")
            if "caption" in annotation:
                captions[image_id].append(str(annotation["caption"]))
                continue
            true = _coco_object(annotation, categories)
            with problems.leaving_out("outline", place):
                true = replace(true, segmentation=_segmentation(annotation))
            objects[image_id].append(true)
    folder = Folder(selection.images or _coco_folder(path, list(file_names.values())))
    labelled_images = []
    for image_id, name in file_names.items():  # one without annotations has no object
        true_objects = tuple(objects[image_id]) if categories else None
        texts = tuple(captions[image_id]) or None
        labelled_images.append(LabelledImage(folder.image(name), true_objects, texts))
    return Dataset(labelled_images, folder, tuple(categories.values()))


def _coco_folder(path: Path, names: list[str]) -> Path:
    """Return the folder of the first image: of annotations/instances_val2017.json val2017/."""
    parent = path.parent
    beside = parent.parent
    split = path.stem.rpartition("_")[2]
    candidates = [parent, parent / "images", beside / "images", beside / "images" / split]
    candidates += [beside / split, beside]
    for candidate in candidates:
        if not names or path_within(candidate, names[0]).is_file():
            return candidate
    folders = ", ".join(map(str, candidates))
    hint = "give its folder with --images"
    raise RunError(f"{path}: the image {names[0]} is in none of {folders}: {hint}")


def _coco_object(annotation: Mapping[str, Any], categories: Mapping[int, str]) -> TrueObject:
    category = annotation["category_id"]
    if category not in categories:
        raise ValueError(f"category_id {category!r} is not in `categories`")
    x, y, width, height = map(float, annotation["bbox"])
    box = true_box((x, y, x + width, y + height))
    return TrueObject(categories[category], box, is_crowd=bool(annotation.get("iscrowd")))


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


def coco_of_records(records: Iterable[Record], classes: Iterable[str]) -> dict[str, Any]:
    """Return the COCO document; ids count from 1, each annotation has the `score` of its box."""
    images = []
    for number, record in enumerate(records, 1):
        images.append((number, record.image.name, record.answer))
    return coco_document(images, classes)


def read_label_studio(path: Path, document: Any, selection: Selection) -> Dataset | None:
    if not isinstance(document, list) or not document or not isinstance(document[0], Mapping):
        return None
    if not {"annotations", "image"} & document[0].keys():
        return None
    store = Folder(selection.images or path.parent)
    problems = selection.problems
    labelled_images = []
    for number, task in enumerate(document, 1):
        place = f"{path}, task {number}"
        with problems.leaving_out("image", place):
            objects = []
            captions: list[str] = []
            for result in _regions(task):
                with problems.leaving_out("object", place):
                    if (text := result.get("text")) and "x" not in result:
                        captions += [text] if isinstance(text, str) else text
                    elif "x" in result or "points" in result:
                        objects.append(_region_object(result))
            data = task.get("data", task)
            urls = [data[name] for name in ("image", *data) if isinstance(data.get(name), str)]
            if not urls:
                raise ValueError("the task names no image")
            image = _imported_image(store, urls[0])
            texts = tuple(map(str, captions)) or None
            labelled_images.append(LabelledImage(image, tuple(objects), texts))
    return Dataset(labelled_images, store, classes_of(labelled_images))


def _regions(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the regions of the last annotation that was not cancelled, or those of JSON-MIN."""
    if "annotations" not in task:
        for value in task.values():
            if isinstance(value, list):
                yield from value
        return
    regions: list[dict[str, Any]] = []
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            regions = annotation["result"]
    for result in regions:
        yield {**result, **result.get("value", {})}


def _region_object(result: Mapping[str, Any]) -> TrueObject:
    labels = result.get("rectanglelabels") or result.get("polygonlabels")
    if not labels:
        raise ValueError(f"a region of type {result.get('type', 'unknown')} has no box or polygon")
    label = str(labels[0])
    scale = np.array([float(result["original_width"]), float(result["original_height"])]) / 100
    if "points" in result:
        return outlined(label, np.asarray(result["points"], dtype=np.float64) * scale)
    corner = np.array([float(result["x"]), float(result["y"])]) * scale
    size = np.array([float(result["width"]), float(result["height"])]) * scale
    box = true_box((*corner, *(corner + size)))
    x, y = corner.tolist()
    return rotated(label, box, float(result.get("rotation", 0)), (x, y))


def _imported_image(store: Folder, url: str) -> ImageFile:
    """Return the file that ends like the URL, or has its name without the prefix of an upload."""
    parts = urlsplit(url)
    local = parse_qs(parts.query).get("d")  # a local storage has it
    names = PurePosixPath(local[0] if local else unquote(parts.path)).parts
    safe = [name for name in names if name not in ("/", "..")]
    last = safe[-1] if safe else ""
    candidates = ["/".join(safe[start:]) for start in range(len(safe))]
    for name in (last, _UPLOADED.sub("", last)):
        candidates += [name, f"images/{name}"]
    for candidate in candidates:
        if (store.path / candidate).is_file():
            return store.image(candidate)
    hint = "give its folder with --images"
    raise ValueError(
        f"the image {last!r:.200} is neither in {store.path} nor in its images/: {hint}"
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
        x1, y1, x2, y2 = box_of(box)
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
        "value": {**place, kind: [category_of(box)]},
    }


def read_voc(path: Path, selection: Selection) -> Dataset | None:
    """Read one split, by default all annotations."""
    store = Folder(next(filter(Path.is_dir, (path / "JPEGImages", path / "images")), path))
    annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
    problems = selection.problems
    files = _voc_files(path, annotations, selection.split)
    if not files:
        return None
    labelled_images = []
    for file in files:
        try:
            root = read_xml(file)
        except (RunError, OSError) as error:
            problems.add(file, str(error).removeprefix(f"{file} "), "image left out")
            continue
        below = PurePosixPath(file.parent.relative_to(annotations).as_posix())
        name = root.findtext("filename") or f"{file.stem}.jpg"
        image = _voc_image(store, below, name, file.stem)
        objects = []
        for number, element in enumerate(root.findall("object"), 1):
            with problems.leaving_out("object", f"{file}, object {number}"):
                objects.append(_voc_object(element))
        labelled_images.append(LabelledImage(image, tuple(objects)))
    return Dataset(labelled_images, store, classes_of(labelled_images))


def _voc_files(path: Path, annotations: Path, split: str | None) -> list[Path]:
    listing = path / "ImageSets" / "Main" / f"{split}.txt"
    if split is not None and listing.is_file():
        names = [line.split()[0] for line in read_text(listing).splitlines() if line.strip()]
        return [path_within(annotations, f"{name}.xml") for name in names]
    files = []
    for file in sorted(annotations.rglob("*.xml")):
        if split in (None, *file.relative_to(annotations).parts):
            files.append(file)
    return files


def _voc_image(store: Folder, below: PurePosixPath, name: str, stem: str) -> ImageFile:
    """Return the image of this name, or of the XML file's; a missing one fails when it is read."""
    name = name.rpartition("\\")[2]
    for file_name in (name, *(f"{stem}{suffix}" for suffix in sorted(SUFFIXES))):
        for candidate in ((below / file_name).as_posix(), file_name):
            if path_within(store.path, candidate).is_file():
                return store.image(candidate)
    return store.image(name)


def _voc_object(element: ElementTree.Element) -> TrueObject:
    edges = [element.findtext(f"bndbox/{edge}") or "" for edge in ("xmin", "ymin", "xmax", "ymax")]
    x1, y1, x2, y2 = map(float, edges)
    box = true_box((x1 - 1, y1 - 1, x2, y2))
    label = element.findtext("name")
    if not label:
        raise ValueError("the object has no name")
    return TrueObject(label, box, is_crowd=element.findtext("difficult") == "1")


def read_cvat(path: Path, selection: Selection) -> Dataset | None:
    """Read annotations.xml, whose images are in images/; return None for another XML file."""
    root = read_xml(path, _MAX_CVAT_BYTES)
    if root.tag != "annotations":
        return None
    beside = path.parent / "images"
    store = Folder(selection.images or (beside if beside.is_dir() else path.parent))
    labelled_images = []
    for number, image in enumerate(root.findall("image"), 1):
        name = image.get("name", "")
        objects = []
        for element in image:
            place = f"{path}, image {number} ({name})"
            with selection.problems.leaving_out("object", place):
                objects.append(_cvat_object(element))
        labelled_images.append(LabelledImage(store.image(name), tuple(objects)))
    return Dataset(labelled_images, store, classes_of(labelled_images))


def _cvat_object(element: ElementTree.Element) -> TrueObject:
    label = element.get("label", "")
    if element.tag == "polygon":
        points = [pair.split(",") for pair in element.get("points", "").split(";")]
        return outlined(label, points)
    if element.tag != "box":
        raise ValueError(f"a {element.tag} is neither a box nor a polygon")
    x1, y1, x2, y2 = true_box(element.get(name, "") for name in ("xtl", "ytl", "xbr", "ybr"))
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    return rotated(label, (x1, y1, x2, y2), float(element.get("rotation", 0)), center)
