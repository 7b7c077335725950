"""JSON lines, one row for each image, or for each of its labels; docs/evaluation.md has the fields.

metadata.jsonl of an ImageFolder has others (huggingface.co/docs/datasets, "Create an image
dataset"), and so have the rows of prefix_suffix.py:

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
    Selection,
    TrueObject,
    TruePhrase,
    TrueQuestion,
    merged,
    read_lines,
    true_box,
)
from diptych_client.evaluation.formats.export import Export
from diptych_client.evaluation.formats.prefix_suffix import prefix_suffix_row
from diptych_client.evaluation.questions import Record
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import RunError
from diptych_client.transports.messages import to_json

_CATEGORIES = ("category", "categories", "label")  # names of the column
_LABELS = {"objects", "captions", "caption", "text", "region", "phrases", "prefix", "suffix"}
_LABELS |= {"questions", "question", "answers", "answer"}
_OTHERS = {"image", "file_name", "width", "height", "id", "image_id", "question_id", "split"}


def read_json_lines(path: Path, selection: Selection) -> Dataset:
    """Read a file; lines of the same image may repeat, as with several questions."""
    store = selection.store(path.parent)
    rows: list[LabelledImage] = []
    for number, line in read_lines(path):
        expected = "expected an object with `image` and labels"
        place = f"{path}, line {number}"
        with selection.problems.leaving_out("line", f"{place}: {expected}"):
            row = json.loads(line)
            if "file_name" in row:
                row = metadata_row(row) | {"image": row["file_name"]}
            image = store.image(row["image"])
            if "prefix" in row and "suffix" in row:
                row |= prefix_suffix_row(row, store.path / image.name, selection.problems, place)
            rows.append(labelled_image(image, row, selection))
    return Dataset(merged(rows), store)


def metadata_row(row: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a row of Hugging Face's as one of JSON lines; `text` may also be the caption."""
    row = {"captions": row.get("caption", row.get("text")), **row}
    objects = row.get("objects")
    if not isinstance(objects, Mapping):
        return row
    labels = next((objects[name] for name in _CATEGORIES if name in objects), None)
    if labels is None or "bbox" not in objects:
        raise RunError(f"`objects` must have bbox and categories, got {', '.join(objects)}")
    object_rows = []
    for label, (x, y, width, height) in zip(labels, objects["bbox"], strict=True):
        if isinstance(label, int) and class_names:
            label = class_names[label]
        object_rows.append({"label": label, "box": [x, y, x + width, y + height]})
    return {**row, "objects": object_rows}


def labelled_image(image: ImageFile, row: Mapping[str, Any], selection: Selection) -> LabelledImage:
    """Return the labels of a row; other fields than labels and common data are counted."""
    for name in row.keys() - _LABELS - _OTHERS:
        selection.problems.count(f"field {name!s:.40} not read")
    objects = row.get("objects")
    captions = row.get("captions", row.get("caption"))
    text = row.get("text")
    questions = []
    for question in row.get("questions") or ([row] if "question" in row else []):
        answers = question.get("answers", question.get("answer"))
        accepted = () if answers is None else _texts(answers)
        questions.append(TrueQuestion(str(question["question"]), accepted))
    phrases = []
    for phrase in row.get("phrases") or ():
        box = _optional_box(phrase.get("box"))
        phrases.append(TruePhrase(str(phrase["phrase"]), box, phrase.get("segmentation")))
    return LabelledImage(
        image,
        None if objects is None else tuple(map(_object, objects)),
        None if captions is None else _texts(captions),
        None if text is None else str(text),
        _optional_box(row.get("region")),
        tuple(questions),
        tuple(phrases),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    texts = []
    for text in [value] if isinstance(value, str) else value:
        texts.append(str(text["answer"] if isinstance(text, Mapping) else text))
    return tuple(texts)


def _object(row: Mapping[str, Any]) -> TrueObject:
    is_crowd = bool(row.get("iscrowd"))
    return TrueObject(str(row["label"]), true_box(row["box"]), row.get("segmentation"), is_crowd)


def _optional_box(box: Any) -> BoxXyxy | None:
    return None if box is None else true_box(box)


def write_json_lines(export: Export) -> Path:
    """Write {"image": name, "answer": the JSON of REST}."""
    return export.write_whole("answers.jsonl", _lines)


def _lines(records: Sequence[Record]) -> str:
    text = ""
    for record in records:
        row = {"image": record.image.name, "answer": to_json(record.answer)}
        text += json.dumps(row) + "\n"
    return text
