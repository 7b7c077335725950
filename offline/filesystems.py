"""Files of local folders and object stores by path or URI.

S3, Google Cloud Storage, HDFS and Azure are pyarrow's file systems; every other scheme is fsspec's.
"""

import posixpath
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSystem

_ARROW_SCHEMES = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})
_MAGIC = frozenset("*[")


class InputError(Exception):
    """An input or output cannot be used as it was given."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file at `path` of the file system that the URI `root` names."""

    root: str
    path: str

    @property
    def key(self) -> str:
        """The path of a local file, the URI of another, without the options of its file system."""
        scheme, separator, _ = self.root.partition("://")
        if not separator or scheme == "file":
            return self.path
        return f"{scheme}://{self.path.lstrip('/')}"

    def open(self) -> IO[bytes]:
        stream: IO[bytes] = file_system(self.root)[0].open(self.path, "rb")
        return stream

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def beside(self, name: str) -> "StoredFile":
        """Return the file `name` in the folder of this one: relative, absolute, or a URI."""
        if "://" in name:
            return StoredFile(name, file_system(name)[1])
        return StoredFile(self.root, posixpath.join(posixpath.dirname(self.path), name))


@lru_cache(maxsize=64)
def file_system(uri: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a path or URI and the path in it; raise `InputError`."""
    scheme, separator, rest = uri.partition("://")
    try:
        if not separator or scheme == "file":
            files, path = url_to_fs(str(Path(rest if separator else uri).absolute()))
        elif scheme in _ARROW_SCHEMES:
            address, question, options = uri.partition("?")
            # A pattern is not a URI to pyarrow: it is added to the path.
            parts = address.split("/")
            is_pattern = (index for index, part in enumerate(parts) if _MAGIC & set(part))
            num_plain = next(is_pattern, len(parts))
            plain = "/".join(parts[:num_plain]) + question + options
            arrow_files, arrow_path = FileSystem.from_uri(plain)
            files = ArrowFSWrapper(arrow_files)
            path = posixpath.join(arrow_path, *parts[num_plain:])
        else:
            files, path = url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"{uri}: {error}") from error
    return files, path


def list_files(uri: str) -> list[StoredFile]:
    """Return the files of a folder and its sub-folders, of a pattern, or the one file, by path."""
    files, path = file_system(uri)
    if _MAGIC & set(path) and not files.exists(path):
        paths = [match for match in files.glob(path) if files.isfile(match)]
    elif files.isdir(path):
        paths = files.find(path)
    else:
        paths = [path] if files.exists(path) else []
    if not paths:
        raise InputError(f"{uri}: there is no such file or folder, or the folder is empty")
    return [StoredFile(uri, stored_path) for stored_path in sorted(paths)]
