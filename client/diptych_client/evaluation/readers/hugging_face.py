"""Datasets of Hugging Face's `datasets`, read with pyarrow: a saved folder, or Parquet files.

The image is the column of that type (a struct of `bytes` and `path`). Objects are those of its
object detection guide: `objects` with `bbox` as [x, y, width, height] and `category` as names or
numbers of a ClassLabel. The other columns are the fields of JSON lines. Files cache-….arrow, which
the library's `map` leaves beside a saved dataset, are not read.
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

from diptych_client.evaluation.dataset import Dataset, LabelledImage, NoSuchSplit, classes_of
from diptych_client.evaluation.readers.json_lines import from_hugging_face, labelled_row
from diptych_client.inputs import Problems
from diptych_client.inputs.files import ImageFile, path_within
from diptych_client.inputs.problems import MALFORMED
from diptych_client.long_runs import RunError
from diptych_client.requests import read_image_file

_SUFFIXES = ("*.parquet", "*.arrow")
_SPLITS = ("train", "val", "test")
_MAX_BLOCKS = 4  # record batches whose images are held in memory


def is_hugging_face(path: Path) -> bool:
    """Return True for a folder with Parquet or Arrow files, in it or in its subfolders."""
    return bool(_files(path))


def read_hugging_face(path: Path, split: str | None, problems: Problems) -> Dataset:
    """Read the files with the split in their path; without one, all must be of one split."""
    folder = path.parent if path.is_file() else path
    files = []
    splits = set[str]()
    for file in [path] if path.is_file() else _files(path):
        name = file.relative_to(folder).as_posix()
        if split is None or split in name:
            files.append(file)
            splits.update(each for each in _SPLITS if each in name)
    if not files:
        raise NoSuchSplit(f"{path} has no Parquet or Arrow file of the split {split}")
    if len(splits) > 1:
        choices = ", ".join(sorted(splits))
        raise RunError(f"{path} has several splits: choose one with --split ({choices})")
    store = ArrowImages(folder, tuple(files))
    try:
        labelled = list(store.labelled(problems))
        classes = store.class_names() or classes_of(labelled)
    except (*MALFORMED, pyarrow.ArrowException) as error:
        raise RunError(f"{path} is not a dataset of Hugging Face's: {error!r:.200}") from error
    return Dataset(labelled, store, tuple(classes))


def _files(folder: Path) -> list[Path]:
    found = chain.from_iterable(map(folder.rglob, _SUFFIXES))
    return sorted(each for each in found if not each.name.startswith("cache-"))


@dataclass(frozen=True, slots=True)
class ArrowImages:
    """Images in the rows of files, named `FILE#ROW`; a few record batches are held in memory."""

    folder: Path
    files: tuple[Path, ...]
    places: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # file, block, row in it

    def labelled(self, problems: Problems) -> Iterator[LabelledImage]:
        """Yield the labels of every row, without its image."""
        names = self.class_names()
        for file_index, path in enumerate(self.files):
            stat = path.stat()
            number = 0
            name = path.relative_to(self.folder).as_posix()
            column = _image_column(path)
            others = tuple(each for each in _schema(path).names if each != column)
            num_blocks = int(_open(path).num_row_groups) if path.suffix == ".parquet" else 1
            for block in range(num_blocks):
                for row_in_block, row in enumerate(_block(path, block, others).to_pylist()):
                    image = ImageFile(f"{name}#{number}", stat.st_size, stat.st_mtime_ns)
                    self.places[image.name] = (file_index, block, row_in_block)
                    number += 1
                    with problems.leaving_out("row", path, image.name):
                        yield labelled_row(image, from_hugging_face(row, names))

    def read(self, image: ImageFile) -> bytes:
        file_index, block, row = self.places[image.name]
        path = self.files[file_index]
        value = _block(path, block, (_image_column(path),)).column(0)[row].as_py()
        data: bytes | None = value["bytes"] if isinstance(value, Mapping) else value
        if data is None:
            return read_image_file(path_within(path.parent, value["path"]))
        return data

    def class_names(self) -> Sequence[str]:
        """Return the names of the ClassLabel of the objects, empty if they are texts."""
        metadata = _schema(self.files[0]).metadata or {}
        document = json.loads(metadata.get(b"huggingface", b"{}"))
        features = document.get("info", {}).get("features", {})
        return _class_label_names(features.get("objects"))


def _class_label_names(feature: Any) -> Sequence[str]:
    """Return the names of the ClassLabel anywhere in a feature."""
    if isinstance(feature, Mapping):
        if feature.get("_type") == "ClassLabel":
            return [str(name) for name in feature["names"]]
        feature = list(feature.values())
    if isinstance(feature, list):
        return next((names for each in feature if (names := _class_label_names(each))), ())
    return ()


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
