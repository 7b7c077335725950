"""A labelling job: the task with its parameters and model, and the image files of the folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from diptych_client.long_runs import RunError
from diptych_client.requests import AnswerOptions, TaskParameters, given_fields

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}  # the formats that the service reads


@dataclass(frozen=True, slots=True)
class Job:
    """A task, its parameters, and one model."""

    task: str
    model: str
    parameters: TaskParameters
    options: AnswerOptions

    def fields(self) -> dict[str, object]:
        """Return the job in JSON's types."""
        chosen = {"task": self.task, "model": self.model}
        given = chosen | given_fields(self.parameters, self.options)
        fields: dict[str, object] = json.loads(json.dumps(given))
        return fields

    def requested_labels(self) -> tuple[str, ...]:
        """Return the labels or phrases of the job, the first classes of its dataset."""
        return tuple(self.parameters.labels or self.parameters.phrases or ())


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image by its path relative to the folder, with `/`; size and time detect a change."""

    name: str
    size_bytes: int
    mtime_ns: int


def find_images(folder: Path) -> list[ImageFile]:
    """Return the images in a folder and its subfolders, sorted by name."""
    images = []
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            stat = path.stat()
            name = path.relative_to(folder).as_posix()
            images.append(ImageFile(name, stat.st_size, stat.st_mtime_ns))
    return sorted(images, key=lambda image: image.name)


def check_folders(images: Path, out: Path) -> None:
    """Raise `RunError` if one folder contains the other: output would mix with images."""
    source = images.resolve()
    target = out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        rule = f"must be outside the image folder {images}, and must not contain it"
        raise RunError(f"--out {out} {rule}")
