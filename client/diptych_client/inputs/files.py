"""Images as files of a folder; a name that a stranger wrote cannot lead out of it."""

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from diptych_client.long_runs import RunError
from diptych_client.requests import read_image_file

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}  # the formats that the service reads


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by its path relative to the folder, with `/`; size and time detect a change."""

    name: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class NamedImage:
    """The bytes of an image as a file object, whose name is in notes about it."""

    name: str
    data: bytes

    def read(self) -> bytes:
        return self.data


class ImageStore(Protocol):
    """Where the image files are."""

    def read(self, image: ImageFile) -> bytes:
        """Return the file of an image; raise `OSError` if it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """Images as files of a folder."""

    path: Path

    def read(self, image: ImageFile) -> bytes:
        return read_image_file(self.path / image.name)

    def image(self, name: str) -> ImageFile:
        """Return an image by its path in the folder; a missing one fails when it is read."""
        path = path_within(self.path, name)
        if not path.exists():
            return ImageFile(name, 0, 0)
        stat = path.stat()
        return ImageFile(name, stat.st_size, stat.st_mtime_ns)


def find_images(folder: Path) -> list[ImageFile]:
    """Return the images in a folder and its subfolders, sorted by name."""
    images = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            stat = path.stat()
            name = path.relative_to(folder).as_posix()
            images.append(ImageFile(name, stat.st_size, stat.st_mtime_ns))
    return sorted(images, key=lambda image: image.name)


def path_within(folder: Path, name: object) -> Path:
    """Return the path of a file that a dataset names.

    Raise `RunError` if the name leaves the folder.

    The text decides: a folder of images is often a link to another disk, which its owner made.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RunError(f"{folder}: a file name must be text without NUL, got {name!r:.200}")
    path = Path(os.path.abspath(folder / name))
    if not path.is_relative_to(os.path.abspath(folder)):
        raise RunError(
            f"{folder}: the file name {name!r:.200} leads outside this folder; it must be a path"
            " within it"
        )
    return path
