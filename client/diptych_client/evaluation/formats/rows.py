"""One row for each image: JSON lines, and datasets of Hugging Face's library `datasets`.

docs/evaluation.md has the fields of JSON lines. metadata.jsonl of an ImageFolder has others
(huggingface.co/docs/datasets, "Create an image dataset"):

{"file_name": "a.png", "text": "two cats"}
{"file_name": "a.png", "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}

A saved folder or Parquet files are read with pyarrow. The image is the column of that type (a
struct of `bytes` and `path`), `category` holds names or numbers of a ClassLabel, and the other
columns are as above. Files cache-….arrow, which the library's `map` leaves, are not read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from diptych_client.evaluation.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    TruePhrase,
    TrueQuestion,
    classes_of,
    read_lines,
    true_box,
)
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import MALFORMED, Folder, ImageFile, Problems, path_within
from diptych_client.long_runs import RunError
from diptych_client.requests import read_image_file

_CATEGORIES = ("category", "categories", "label")  # names of the column
_ARROW_FILES = ("*.parquet", "*.arrow")
_SPLITS = ("train", "val", "test")
_MAX_BLOCKS = 4  # record batches whose images are in memory


def read_json_lines(path: Path, selection: Selection) -> Dataset:
    """Read a file; lines of the same image may repeat, as with several questions."""
    folder = Folder(selection.images or path.parent)
    labelled_images = []
    for number, line in read_lines(path):
        expected = "expected an object with `image` and labels"
        with selection.problems.leaving_out("line", f"{path}, line {number}: {expected}"):
            row = json.loads(line)
            if "file_name" in row:
                row = _json_lines_row(row) | {"image": row["file_name"]}
            labelled_images.append(_labelled(folder.image(row["image"]), row))
    return Dataset(labelled_images, folder, classes_of(labelled_images))


def _json_lines_row(row: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
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


def _labelled(image: ImageFile, row: Mapping[str, Any]) -> LabelledImage:
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


def read_hugging_face(path: Path, selection: Selection) -> Dataset | None:
    """Read the files with the split in their path; without one, all must be of one split."""
    folder = path.parent if path.is_file() else path
    paths = [path] if path.is_file() else sorted(chain(*map(path.rglob, _ARROW_FILES)))
    split = selection.split
    files = []
    splits = set[str]()
    for file in paths:
        name = file.relative_to(folder).as_posix()
        if not file.name.startswith("cache-") and (split is None or split in name):
            files.append(file)
            splits.update(known for known in _SPLITS if known in name)
    if not files:
        return None
    if len(splits) > 1:
        choices = ", ".join(sorted(splits))
        raise RunError(f"{path} has several splits: choose one with --split ({choices})")
    store = ArrowImages(folder, tuple(files))
    try:
        labelled_images = list(store.labelled_images(selection.problems))
        classes = store.class_names() or classes_of(labelled_images)
    except (*MALFORMED, pyarrow.ArrowException) as error:
        raise RunError(f"{path} is not a dataset of Hugging Face's: {error!r:.200}") from error
    return Dataset(labelled_images, store, tuple(classes))


@dataclass(frozen=True, slots=True)
class ArrowImages:
    """Images in the rows of files, named `FILE#ROW`; a few record batches are in memory."""

    folder: Path
    files: tuple[Path, ...]
    places: dict[str, tuple[Path, int, int]] = field(default_factory=dict)  # file, block, row in it

    def labelled_images(self, problems: Problems) -> Iterator[LabelledImage]:
        class_names = self.class_names()
        for path in self.files:
            stat = path.stat()
            number = 0
            name = path.relative_to(self.folder).as_posix()
            columns = list(_schema(path).names)
            columns.remove(_image_column(path))
            num_blocks = int(_open(path).num_row_groups) if path.suffix == ".parquet" else 1
            for block in range(num_blocks):
                rows = _block(path, block, tuple(columns)).to_pylist()
                for row_in_block, row in enumerate(rows):
                    image = ImageFile(f"{name}#{number}", stat.st_size, stat.st_mtime_ns)
                    self.places[image.name] = (path, block, row_in_block)
                    number += 1
                    with problems.leaving_out("row", f"{path}, {image.name}"):
                        yield _labelled(image, _json_lines_row(row, class_names))

    def read(self, image: ImageFile) -> bytes:
        path, block, row = self.places[image.name]
        value = _block(path, block, (_image_column(path),)).column(0)[row].as_py()
        data: bytes | None = value["bytes"] if isinstance(value, Mapping) else value
        if data is None:
            data = read_image_file(path_within(path.parent, value["path"]))
        return data

    def class_names(self) -> Sequence[str]:
        """Return the names of the ClassLabel of the objects, empty if they are texts."""
        metadata = _schema(self.files[0]).metadata or {}
        document = json.loads(metadata.get(b"huggingface", b"{}"))
        feature = document.get("info", {}).get("features", {}).get("objects")
        names: list[str] = []

        def collect(inner: dict[str, Any]) -> None:
            if inner.get("_type") == "ClassLabel" and not names:
                names.extend(map(str, inner["names"]))

        json.loads(json.dumps(feature), object_hook=collect)
        return names


@lru_cache
def _image_column(path: Path) -> str:
    """Return the column of images: a struct with `bytes`, or bytes."""
    for column in _schema(path):
        is_struct = pyarrow.types.is_struct(column.type)
        has_bytes = is_struct and column.type.get_field_index("bytes") >= 0
        if has_bytes or pyarrow.types.is_binary(column.type):
            return str(column.name)
    raise RunError(f"{path} has no column of images")


@lru_cache
def _open(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pyarrow.parquet.ParquetFile(path)
    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()  # mapped, not read


def _schema(path: Path) -> Any:
    file = _open(path)
    return file.schema_arrow if path.suffix == ".parquet" else file.schema


@lru_cache(_MAX_BLOCKS)
def _block(path: Path, block: int, columns: tuple[str, ...]) -> Any:
    """Return a row group; a mapped file is one block."""
    file = _open(path)
    if path.suffix == ".parquet":
        return file.read_row_group(block, columns=list(columns))
    return file.select(list(columns))
