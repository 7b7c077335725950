"""JSON lines: an object for each image; `image` is a path relative to the file, the rest labels.

{"image": "a.png", "caption": "two cats"}, or "captions": ["two cats", "cats on a sofa"]
{"image": "a.png", "text": "EXIT"}, and "region": [x1, y1, x2, y2] if the text is about a region
{"image": "a.png", "question": "how many?", "answers": ["2", "two"]}, or "answer": "2"
{"image": "a.png", "phrases": [{"phrase": "left cat", "box": [x1, y1, x2, y2],
 "segmentation": [[x, y, …]]}]}
{"image": "a.png", "objects": [{"label": "cat", "box": [x1, y1, x2, y2],
 "segmentation": [[x, y, …]]}]}

Also metadata.jsonl of an ImageFolder (huggingface.co/docs/datasets, "Create an image dataset"):

{"file_name": "a.png", "text": "two cats"}
{"file_name": "a.png", "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
    classes_of,
    true_box,
)
from diptych_client.evaluation.foreign_files import read_lines
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import Problems
from diptych_client.inputs.files import Folder, ImageFile
from diptych_client.long_runs import RunError

_CATEGORIES = ("category", "categories", "label")  # names of the column


def read_json_lines(path: Path, problems: Problems, images: Path | None = None) -> Dataset:
    """Read a file; lines of the same image may repeat, as with several questions."""
    folder = Folder(images or path.parent)
    labelled = []
    for number, line in read_lines(path):
        expected = "expected an object with `image` and labels"
        with problems.leaving_out("line", f"{path}, line {number}: {expected}"):
            row = json.loads(line)
            if "file_name" in row:
                row = from_hugging_face(row) | {"image": row["file_name"]}
            labelled.append(labelled_row(folder.image(row["image"]), row))
    return Dataset(labelled, folder, classes_of(labelled))


def from_hugging_face(row: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a row of Hugging Face's as one of JSON lines; `text` may also be the caption."""
    row = {"captions": row.get("caption", row.get("text")), **row}
    objects = row.get("objects")
    if not isinstance(objects, Mapping):
        return row
    labels = next((objects[name] for name in _CATEGORIES if name in objects), None)
    if labels is None or "bbox" not in objects:
        raise RunError(f"`objects` must have bbox and categories, got {', '.join(objects)}")
    rows = []
    for label, (x, y, width, height) in zip(labels, objects["bbox"], strict=True):
        if isinstance(label, int) and class_names:
            label = class_names[label]
        rows.append({"label": label, "box": [x, y, x + width, y + height]})
    return {**row, "objects": rows}


def labelled_row(image: ImageFile, row: Mapping[str, Any]) -> LabelledImage:
    """Return the labels of one row."""
    objects = row.get("objects")
    captions = row.get("captions", row.get("caption"))
    text = row.get("text")
    questions = []
    for each in row.get("questions") or ([row] if "question" in row else []):
        answers = each.get("answers", each.get("answer"))
        accepted = () if answers is None else _texts(answers)
        questions.append(TrueQuestion(str(each["question"]), accepted))
    phrases = []
    for each in row.get("phrases") or ():
        phrases.append(TruePhrase(str(each["phrase"]), _box(each), each.get("segmentation")))
    return LabelledImage(
        image,
        None if objects is None else tuple(map(_object, objects)),
        None if captions is None else _texts(captions),
        None if text is None else str(text),
        _box(row, "region"),
        tuple(questions),
        tuple(phrases),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    values = [value] if isinstance(value, str) else value
    return tuple(str(each["answer"] if isinstance(each, Mapping) else each) for each in values)


def _object(row: Mapping[str, Any]) -> TrueObject:
    is_crowd = bool(row.get("iscrowd"))
    box = true_box(row["box"], row["box"])
    return TrueObject(str(row["label"]), box, row.get("segmentation"), row.get("area"), is_crowd)


def _box(row: Mapping[str, Any], name: str = "box") -> BoxXyxy | None:
    return None if row.get(name) is None else true_box(row[name], row[name])
