"""The labels of a dataset to tune on: COCO's JSON, JSON lines with the fields that `diptych
evaluate` reads, YOLO and Pascal VOC (foreign_labels.py).

{"image": "a.png", "caption": "two cats"}, or "captions": ["two cats", "cats on a sofa"]
{"image": "a.png", "text": "EXIT"}, and "region": [x1, y1, x2, y2] if the text is about a region
{"image": "a.png", "question": "how many?", "answers": ["2", "two"]}, or "answer": "2"
{"image": "a.png", "phrases": [{"phrase": "left cat", "box": [x1, y1, x2, y2]}]}
{"image": "a.png", "objects": [{"label": "cat", "box": [x1, y1, x2, y2]}]}

Boxes are in pixels of the upright image.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.checkpoints.errors import TuningError
from export.scenes.truth import LabelledBox
from imaging.errors import ImageError
from imaging.local_files import read_image
from tasks.results import BoxXyxy

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with the labels of one row; None for kinds of labels that the row does not have."""

    path: Path
    size_wh: tuple[int, int]  # upright image, px
    objects: tuple[LabelledBox, ...] | None = None
    captions: tuple[str, ...] = ()
    text: str | None = None
    region_xyxy: BoxXyxy | None = None
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()  # each with its answers
    phrases: tuple[LabelledBox, ...] = ()


class ImageFolder:
    """Sizes of image files. Each file is decoded once: a damaged one is left out of the dataset."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.left_out = list[str]()
        self._sizes = dict[Path, tuple[int, int] | None]()

    def size_wh(self, path: Path) -> tuple[int, int] | None:
        """Return the size of the upright image, or None if it cannot be read."""
        if path not in self._sizes:
            self._sizes[path] = None
            try:
                self._sizes[path] = read_image(path).size
            except (OSError, ImageError) as error:
                self.left_out.append(f"the image {path} cannot be read: {error}")
        return self._sizes[path]


def read_json_lines(path: Path, images: ImageFolder) -> Iterator[LabelledImage]:
    folder = images.folder or path.parent
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                file = folder / row["image"]
                if size_wh := images.size_wh(file):
                    yield _row(file, size_wh, row)
            except MALFORMED as error:
                where = f"{path}, line {number}"
                raise TuningError(
                    f"{where}: expected an object with `image` and labels: {error!r}"
                ) from error


def _row(path: Path, size_wh: tuple[int, int], row: Mapping[str, Any]) -> LabelledImage:
    objects = row.get("objects")
    region = row.get("region")
    questions = []
    for each in row.get("questions") or ([row] if "question" in row else []):
        answers = _texts(each.get("answers", each.get("answer", ())))
        questions.append((each["question"], answers))
    return LabelledImage(
        path,
        size_wh,
        objects=None if objects is None else _labelled_boxes(objects, "label"),
        captions=_texts(row.get("captions", row.get("caption", ()))),
        text=row.get("text"),
        region_xyxy=None if region is None else _box(region),
        questions=tuple(questions),
        phrases=_labelled_boxes(row.get("phrases", ()), "phrase"),
    )


def _labelled_boxes(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[LabelledBox, ...]:
    return tuple(LabelledBox(label_name(each[name]), _box(each["box"])) for each in rows)


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    values = [value] if isinstance(value, str) else value
    return tuple(each["answer"] if isinstance(each, Mapping) else str(each) for each in values)


def read_coco(path: Path, images: ImageFolder) -> Iterator[LabelledImage]:
    """Yield the images. Crowds are not objects; an image without annotations has none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = {each["id"]: str(each["name"]) for each in document.get("categories", ())}
        rows = document["images"]
        own = defaultdict[Any, list[Mapping[str, Any]]](list)
        for annotation in document.get("annotations", ()):
            own[annotation["image_id"]].append(annotation)
        folder = images.folder or _image_folder(path, [each["file_name"] for each in rows])
        for row in rows:
            file = folder / row["file_name"]
            if (size_wh := images.size_wh(file)) is None:
                continue
            objects = []
            captions = []
            for each in own[row["id"]]:
                if "bbox" in each and not each.get("iscrowd"):
                    x, y, width, height = map(float, each["bbox"])
                    label = label_name(names[each["category_id"]])
                    objects.append(LabelledBox(label, (x, y, x + width, y + height)))
                if "caption" in each:
                    captions.append(str(each["caption"]))
            boxes = tuple(objects) if names else None
            yield LabelledImage(file, size_wh, boxes, tuple(captions))
    except MALFORMED as error:
        raise TuningError(f"{path} is not COCO: {error!r}") from error


def _image_folder(path: Path, names: list[str]) -> Path:
    """Return the folder of the first image: COCO's is val2017/ beside annotations/."""
    parent = path.parent
    split = path.stem.rpartition("_")[2]
    above = parent.parent
    folders = (parent, parent / "images", above / "images", above / split, above)
    for folder in folders:
        if not names or (folder / names[0]).is_file():
            return folder
    looked_in = ", ".join(map(str, folders))
    raise TuningError(
        f"{path}: the image {names[0]} is in none of {looked_in}: give its folder with --images"
    )


def label_name(value: Any) -> str:
    """Return a label with single spaces, as a request's labels are read."""
    return " ".join(str(value).split())


def _box(values: Iterable[Any]) -> BoxXyxy:
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)
