"""The labels of a dataset to tune on: COCO's JSON, or JSON lines with the fields that `diptych
evaluate` reads.

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
from imaging.local_files import read_size
from tasks.results import BoxXyxy

_SUFFIXES = (".json", ".jsonl")
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


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


def read_labels(path: Path, images: Path | None = None) -> tuple[LabelledImage, ...]:
    """Read a label file or a folder's only one; `images` is another folder of its images.

    Raise `TuningError` for a missing, malformed or empty dataset, and for an image that cannot be
    read.
    """
    file = path
    if not path.is_file() or path.suffix not in _SUFFIXES:
        found = sorted(each for each in path.glob("*") if each.suffix in _SUFFIXES)
        if len(found) != 1:
            what = f"a folder with {len(found)} such files" if path.is_dir() else "neither"
            raise TuningError(
                "DATA must be a .json (COCO) or .jsonl file, or a folder with one;"
                f" {path} is {what}"
            )
        file = found[0]
    labelled = tuple(
        read_json_lines(file, images) if file.suffix == ".jsonl" else read_coco(file, images)
    )
    if not labelled:
        raise TuningError(f"{file} has no image; a dataset to tune on needs images with labels")
    return labelled


def read_json_lines(path: Path, images: Path | None) -> Iterator[LabelledImage]:
    folder = images or path.parent
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                yield _row(folder, json.loads(line))
            except _MALFORMED as error:
                where = f"{path}, line {number}"
                raise TuningError(
                    f"{where}: expected an object with `image` and labels: {error!r}"
                ) from error


def _row(folder: Path, row: Mapping[str, Any]) -> LabelledImage:
    path = folder / row["image"]
    objects = row.get("objects")
    region = row.get("region")
    questions = []
    for each in row.get("questions") or ([row] if "question" in row else []):
        answers = _texts(each.get("answers", each.get("answer", ())))
        questions.append((each["question"], answers))
    return LabelledImage(
        path,
        _upright_size(path),
        objects=None if objects is None else _labelled_boxes(objects, "label"),
        captions=_texts(row.get("captions", row.get("caption", ()))),
        text=row.get("text"),
        region_xyxy=None if region is None else _box(region),
        questions=tuple(questions),
        phrases=_labelled_boxes(row.get("phrases", ()), "phrase"),
    )


def _labelled_boxes(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[LabelledBox, ...]:
    return tuple(LabelledBox(_name(each[name]), _box(each["box"])) for each in rows)


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    values = [value] if isinstance(value, str) else value
    return tuple(each["answer"] if isinstance(each, Mapping) else str(each) for each in values)


def read_coco(path: Path, images: Path | None) -> Iterator[LabelledImage]:
    """Yield the images. Crowds are not objects; an image without annotations has none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = {each["id"]: str(each["name"]) for each in document.get("categories", ())}
        rows = document["images"]
        own = defaultdict[Any, list[Mapping[str, Any]]](list)
        for annotation in document.get("annotations", ()):
            own[annotation["image_id"]].append(annotation)
        folder = images or _image_folder(path, [each["file_name"] for each in rows])
        for row in rows:
            objects = []
            captions = []
            for each in own[row["id"]]:
                if "bbox" in each and not each.get("iscrowd"):
                    x, y, width, height = map(float, each["bbox"])
                    label = _name(names[each["category_id"]])
                    objects.append(LabelledBox(label, (x, y, x + width, y + height)))
                if "caption" in each:
                    captions.append(str(each["caption"]))
            file = folder / row["file_name"]
            boxes = tuple(objects) if names else None
            yield LabelledImage(file, _upright_size(file), boxes, tuple(captions))
    except _MALFORMED as error:
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


def _name(value: Any) -> str:
    """Return a label with single spaces, as a request's labels are read."""
    return " ".join(str(value).split())


def _box(values: Iterable[Any]) -> BoxXyxy:
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)


def _upright_size(path: Path) -> tuple[int, int]:
    """Return the size of an image from its header."""
    try:
        return read_size(path)
    except (OSError, ImageError) as error:
        raise TuningError(f"the image {path} cannot be read: {error}") from error
