"""A dataset that a writer writes: records by split, their classes, and the folder of its files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from diptych_client.conversion import read_image_file
from diptych_client.datasets.long_runs import Outputs
from diptych_client.datasets.records import Job, Record

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Export:
    """Records by split. A place is a folder of the output; its `{split}` is that of the file.

    A file that an earlier run wrote to another split is removed, unless a person edited it.
    """

    outputs: Outputs
    folder: Path  # of the images
    job: Job
    splits: Mapping[str, Sequence[Record]]
    classes: Mapping[str, int]

    def write_each(self, place: str, suffix: str, text_of: Callable[[Record], str]) -> Path:
        """Write a file for each image, by its name; return the folder of the output."""
        for split, records in self.splits.items():
            for record in records:
                name = PurePosixPath(record.image.name).with_suffix(suffix).as_posix()
                self.outputs.write(self._only_path(place, name, split), text_of(record))
        return self.outputs.folder

    def write_splits(
        self, place: str, name: str, text_of: Callable[[Sequence[Record]], str]
    ) -> Path:
        """Write a file for each split; return the folder of the output."""
        for split in SPLITS:
            path = self._path(place, name, split)
            if split in self.splits:
                self.outputs.write(path, text_of(self.splits[split]))
            else:
                self.outputs.remove(path)
        return self.outputs.folder

    def write_whole(self, name: str, text_of: Callable[[Sequence[Record]], str]) -> Path:
        """Write one file and return its path; several splits are files in their folders."""
        path = self.outputs.folder / name
        if len(self.splits) > 1:
            self.outputs.remove(path)
            return self.write_splits("{split}", name, text_of)
        for split in SPLITS:
            self.outputs.remove(self._path("{split}", name, split))
        return self.outputs.write(path, text_of(self.splits["train"]))

    def link_images(self, place: str) -> None:
        for split, records in self.splits.items():
            for record in records:
                path = self._only_path(place, record.image.name, split)
                source = self.folder / record.image.name
                if source.exists():
                    self.outputs.link(source, path)
                else:  # the converted name of a page, or of a file of another format
                    self.outputs.write(path, read_image_file(source.with_suffix("")))

    def _only_path(self, place: str, name: str, split: str) -> Path:
        path = self._path(place, name, split)
        for other in SPLITS:
            other_path = self._path(place, name, other)
            if other_path != path:
                self.outputs.remove(other_path)
        return path

    def _path(self, place: str, name: str, split: str) -> Path:
        return self.outputs.folder / place.replace("{split}", split) / name
