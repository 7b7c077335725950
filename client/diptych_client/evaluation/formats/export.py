"""A dataset that a writer writes: records by split, their classes, and the folder of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych_client.conversion import read_image_file
from diptych_client.evaluation.questions import Job, Record
from diptych_client.long_runs import Outputs, RunError

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Export:
    """Records by split. A place is a folder of the output; its `{split}` is that of the file."""

    outputs: Outputs
    folder: Path  # of the images
    job: Job
    splits: Mapping[str, Sequence[Record]]
    classes: Mapping[str, int]

    def write(self, place: str, name: str, split: str, text: str) -> Path:
        return self.outputs.write(self._path(place, name, split), text)

    def link(self, place: str, record: Record, split: str) -> None:
        """Link an image; raise `RunError` if an earlier run has it in another split."""
        name = record.image.name
        path = self._path(place, name, split)
        for other in SPLITS:
            other_path = self._path(place, name, other)
            if other_path != path and other_path.exists():
                rule = "an earlier run wrote it to this split: remove it, or give another --out"
                raise RunError(f"{other_path}: {rule}")
        source = self.folder / name
        if source.exists():
            self.outputs.link(source, path)
        else:  # the converted name of a page, or of a file of another format
            self.outputs.write(path, read_image_file(source.with_suffix("")))

    def _path(self, place: str, name: str, split: str) -> Path:
        return self.outputs.folder / place.replace("{split}", split) / name
