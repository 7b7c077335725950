"""The images of a folder, and what tells that one is still the same."""

from dataclasses import dataclass
from pathlib import Path

from client.annotate.job import AnnotationError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}  # what the service reads


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by its path relative to the folder, with `/`; other bytes have another size or time."""

    name: str
    size_bytes: int
    mtime_ns: int


def find_images(folder: Path) -> list[ImageFile]:
    """Return the images in a folder and the folders within, by name."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted((_image_file(folder, path) for path in paths), key=lambda image: image.name)


def separate_folders(images: Path, out: Path) -> None:
    """Raise `AnnotationError` where one folder lies in the other: what is written would be labelled, or overwritten."""
    source, target = images.resolve(), out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        raise AnnotationError(f"--out {out} and the images' folder {images} must lie apart")


def _image_file(folder: Path, path: Path) -> ImageFile:
    stat = path.stat()
    return ImageFile(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns)
