"""Datasets of Hugging Face's library `datasets`: a saved folder, or Parquet files.

The image is the column of that type (a struct of `bytes` and `path`), `category` holds names or
numbers of a ClassLabel, and the other columns are those of JSON lines. Files cache-….arrow, which
the library's `map` leaves, are not read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from diptych_client.conversion import read_image_file
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    splits_in,
)
from diptych_client.datasets.formats.json_lines import labelled_image, metadata_row
from diptych_client.datasets.inputs import MALFORMED, ImageFile, files_below, path_within
from diptych_client.datasets.long_runs import RunError

_MAX_BLOCKS = 4  # record batches whose images are in memory


def read_hugging_face(path: Path, selection: Selection) -> Dataset | None:
    """Read the files with the split in their path; without one, all must be of one split."""
    folder = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else files_below(path, ".parquet", ".arrow")
    names = [name for name in names if not PurePosixPath(name).name.startswith("cache-")]
    included = list(filter(selection.includes, names))
    if not included:
        return None
    if len(splits := splits_in(included)) > 1:
        choices = ", ".join(splits)
        raise RunError(f"{path} has several splits: choose one with --split ({choices})")
    store = ArrowImages(folder, tuple(map(folder.joinpath, included)))
    try:
        labelled_images = list(store.labelled_images(selection))
        classes = tuple(store.class_names())
    except (*MALFORMED, pyarrow.ArrowException) as error:
        raise RunError(f"{path} is not a dataset of Hugging Face's: {error!r:.200}") from error
    return Dataset(labelled_images, store, classes, splits=splits_in(names))


@dataclass(frozen=True, slots=True)
class ArrowImages:
    """Images in the rows of files, named `FILE#ROW`; a few record batches are in memory."""

    folder: Path
    files: tuple[Path, ...]
    places: dict[str, tuple[Path, int, int]] = field(default_factory=dict)  # file, block, row in it

    def labelled_images(self, selection: Selection) -> Iterator[LabelledImage]:
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
                    with selection.problems.leaving_out("row", f"{path}, {image.name}"):
                        yield labelled_image(image, metadata_row(row, class_names), selection)

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
