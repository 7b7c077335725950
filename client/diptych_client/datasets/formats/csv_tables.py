"""CSV: boxes in pixels, one a row, as TensorFlow's and supervision's tables have them; or texts.

    filename,width,height,class,xmin,ymin,xmax,ymax    without class and box: an image of no object
    file_name,text                                     metadata.csv: the caption of an ImageFolder
    image,question,answer                              and every text field of JSON lines

A spreadsheet runs a cell that begins with = + - @ as a formula: such a cell, and one that has
apostrophes before it, is written after an apostrophe, which is not read.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    merged,
    read_head,
    read_text,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.formats.json_lines import labelled_image, metadata_row
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import QUESTIONS, Job, Record
from diptych_client.results import TextResult

_COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
_IMAGES = ("image", "file_name", "filename", "image_path", "image_name", "path", "file")
_LABELS = ("class", "label", "class_name", "label_name", "category", "name")
_EDGES = (_COLUMNS[4:], ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"))
_READ = {"text", "caption", "question", *(names[0] for names in _EDGES)}
_NOT_LABELS = {"width", "height", "class_id", ""}
_MAX_COLUMNS = 1000
_MAX_HEADER_CHARS = 100_000  # csv's limit of a field is higher
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")  # and full-width ones


def is_csv_labels(path: Path) -> bool:
    """Return True if the first line has a column of images and one of labels."""
    header, _ = _header(read_head(path, _MAX_HEADER_CHARS).decode("utf-8-sig", "replace"))
    return not set(_IMAGES).isdisjoint(header) and not _READ.isdisjoint(header)


def read_csv(path: Path, selection: Selection) -> Dataset:
    text = read_text(path)
    header, delimiter = _header(text)
    images = [name for name in _IMAGES if name in header]
    if not images or len(header) > _MAX_COLUMNS:
        rule = f"must have a column {', '.join(_IMAGES)} and at most {_MAX_COLUMNS} columns"
        raise RunError(f"{path} {rule}, got {', '.join(header)[:200]}")
    store = selection.store(path.parent)
    rows: list[LabelledImage] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, cells in enumerate(islice(filter(None, lines), 1, None), 2):
            with selection.problems.leaving_out("row", f"{path}, row {number}"):
                row = dict(zip(header, map(_unescaped, cells), strict=True))
                image = store.image(row.pop(images[0]))
                fields = _fields(row)
                if images[0] == "file_name":
                    fields = metadata_row(fields)
                rows.append(labelled_image(image, fields, selection))
    except csv.Error as error:
        raise RunError(f"{path} is not readable as CSV: {error}") from error
    return Dataset(merged(rows), store)


def _header(text: str) -> tuple[list[str], str]:
    """Return the columns in the first line and their delimiter; any line end is one."""
    line = next(iter(text[:_MAX_HEADER_CHARS].splitlines()), "")
    delimiter = max(",;\t", key=line.count)
    names = next(csv.reader([line.lower()], delimiter=delimiter), [])
    return list(map(str.strip, names)), delimiter


def _fields(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row as fields of JSON lines; empty cells are none."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if value and name not in _NOT_LABELS:
            fields[name] = value.split() if name == "region" else value
    for edges in _EDGES:
        if set(edges) <= row.keys():
            labels = [fields.pop(name) for name in _LABELS if name in fields]
            box = [fields.pop(name) for name in edges if name in fields]
            if box and not labels:
                columns = ", ".join(row)
                rule = f"a box needs a column {' or '.join(_LABELS)}"
                raise ValueError(f"{rule}, got {columns:.200}")
            return fields | {"objects": [{"label": labels[0], "box": box}] if labels else []}
    return fields


def _unescaped(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _escaped(cell: object) -> str:
    return f"'{cell}" if _FORMULA.match(str(cell)) else str(cell)


def _line(cells: Iterable[object]) -> str:
    """Return a line; before Python 3.13 only characters of the line's end are quoted."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(map(_escaped, cells))
    return line.getvalue()[:-2] + "\n"


def write_csv(export: Export) -> Path:
    return export.write_splits("{split}", "labels.csv", partial(_table, export.job))


def _table(job: Job, records: Sequence[Record]) -> str:
    is_text = any(isinstance(record.answer.result, TextResult) for record in records)
    lines = [_line(("image", *_text_fields(job, "")) if is_text else _COLUMNS)]
    for record in records:
        image = record.answer.image
        result = record.answer.result
        start = (record.image.name, image.width, image.height)
        rows: list[tuple[object, ...]] = []
        if isinstance(result, TextResult):
            rows.append((record.image.name, *_text_fields(job, result.text).values()))
        for item in record.items:
            box = (round(max(edge, 0.0), 2) for edge in item.box_xyxy)
            rows.append((*start, item.category, *box))
        lines += map(_line, rows or [(*start, *[""] * 5)])
    return "".join(lines)


def _text_fields(job: Job, text: str) -> dict[str, object]:
    parameters = job.parameters
    if job.task == QUESTIONS:
        return {"question": parameters.question, "answer": text}
    if job.task == "captioning":
        return {"caption": text}
    region = " ".join(map(str, parameters.region or ()))
    return {"text": text, "region": region}
