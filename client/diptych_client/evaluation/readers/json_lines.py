"""JSON lines: one object for each image, with any of these fields besides `image`, its path
relative to the file.

{"image": "a.png", "caption": "two cats"}, or "captions": ["two cats", "cats on a sofa"] {"image":
"a.png", "text": "EXIT"}, and "region": [x1, y1, x2, y2] if the text is about a region {"image":
"a.png", "question": "how many?", "answers": ["2", "two"]}, or "answer": "2" {"image": "a.png",
"phrases": [{"phrase": "left cat", "box": [x1, y1, x2, y2], "segmentation": [[x, y, …]]}]} {"image":
"a.png", "objects": [{"label": "cat", "box": [x1, y1, x2, y2], "segmentation": [[x, y, …]]}]}

Also metadata.jsonl of an ImageFolder (huggingface.co/docs/datasets, "Create an image dataset"):

{"file_name": "a.png", "text": "two cats"}
{"file_name": "a.png", "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych_client.annotate.job import ImageFile
from diptych_client.evaluation.dataset import (
    Dataset,
    Folder,
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
)
from diptych_client.evaluation.foreign_files import MALFORMED, read_lines
from diptych_client.geometry import BoxXyxy
from diptych_client.long_runs import RunError

_CATEGORIES = ("category", "categories", "label")  # names of the column


def read_json_lines(path: Path, images: Path | None = None) -> Dataset:
    """Read a file; lines of the same image may repeat, as with several questions."""
    folder = Folder(images or path.parent)
    labelled = [
        _labelled(folder, line, f"{path}, line {number}") for number, line in read_lines(path)
    ]
    return Dataset(labelled, folder, classes_of(labelled))


def _labelled(folder: Folder, line: str, where: str) -> LabelledImage:
    try:
        row = json.loads(line)
        if "file_name" in row:
            return labelled_row(folder.image(row["file_name"]), from_hugging_face(row))
        return labelled_row(folder.image(row["image"]), row)
    except MALFORMED as error:
        raise RunError(
            f"{where}: expected an object with `image` and labels: {error!r:.200}"
        ) from error


def classes_of(labelled: Iterable[LabelledImage]) -> tuple[str, ...]:
    """Return the labels of all objects, sorted."""
    return tuple(sorted({each.label for image in labelled for each in image.objects or ()}))


def from_hugging_face(row: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a row of Hugging Face's with the fields of JSON lines.

    Its `text` may also be the caption.
    """
    row = {"captions": row.get("caption", row.get("text")), **row}
    objects = row.get("objects")
    if not isinstance(objects, Mapping):
        return row
    labels = next((objects[name] for name in _CATEGORIES if name in objects), None)
    if labels is None or "bbox" not in objects:
        raise RunError(f"`objects` must have bbox and categories, got {', '.join(objects)}")
    rows = [
        {
            "label": class_names[label] if isinstance(label, int) and class_names else label,
            "box": [x, y, x + width, y + height],
        }
        for label, (x, y, width, height) in zip(labels, objects["bbox"], strict=True)
    ]
    return {**row, "objects": rows}


def labelled_row(image: ImageFile, row: Mapping[str, Any]) -> LabelledImage:
    """Return the labels of one row."""
    objects = row.get("objects")
    captions = row.get("captions", row.get("caption"))
    text = row.get("text")
    return LabelledImage(
        image,
        None if objects is None else tuple(map(_object, objects)),
        None if captions is None else _texts(captions),
        None if text is None else str(text),
        None if row.get("region") is None else _box(row["region"]),
        tuple(_questions(row)),
        tuple(map(_phrase, row.get("phrases") or ())),
    )


def _questions(row: Mapping[str, Any]) -> Iterable[TrueQuestion]:
    for each in row.get("questions") or ([row] if "question" in row else []):
        answers = each.get("answers", each.get("answer"))
        yield TrueQuestion(str(each["question"]), () if answers is None else _texts(answers))


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    values = [value] if isinstance(value, str) else value
    return tuple(str(each["answer"] if isinstance(each, Mapping) else each) for each in values)


def _phrase(row: Mapping[str, Any]) -> TruePhrase:
    box = None if row.get("box") is None else _box(row["box"])
    return TruePhrase(str(row["phrase"]), box, row.get("segmentation"))


def _object(row: Mapping[str, Any]) -> TrueObject:
    is_crowd = bool(row.get("iscrowd"))
    return TrueObject(
        str(row["label"]), _box(row["box"]), row.get("segmentation"), row.get("area"), is_crowd
    )


def _box(values: Iterable[Any]) -> BoxXyxy:
    x1, y1, x2, y2 = map(float, values)
    return (x1, y1, x2, y2)
