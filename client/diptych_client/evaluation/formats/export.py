"""A dataset that a writer writes: records by split, their classes, and the folder of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from diptych_client.conversion import read_image_file
from diptych_client.evaluation.questions import Job, Record
from diptych_client.long_runs import Outputs
from diptych_client.results import TextResult

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class Export:
    """Records by split. A place is a folder of the output; its `{split}` is that of the file."""

    outputs: Outputs
    folder: Path  # of the images
    job: Job
    splits: Mapping[str, Sequence[Record]]
    classes: Mapping[str, int]
    files: set[tuple[str, str, str]] = field(default_factory=set)

    @property
    def is_text(self) -> bool:
        """True for records of texts, which are no objects."""
        return any(isinstance(r.answer.result, TextResult) for r in chain(*self.splits.values()))

    def path(self, place: str, name: str, split: str) -> Path:
        return self.outputs.folder / place.replace("{split}", split) / name

    def write(self, place: str, name: str, split: str, text: str) -> Path:
        self.files.add((place, name, split))
        return self.outputs.write(self.path(place, name, split), text)

    def link(self, place: str, record: Record, split: str) -> None:
        name = record.image.name
        self.files.add((place, name, split))
        source = self.folder / name
        path = self.path(place, name, split)
        if source.exists():
            self.outputs.link(source, path)
        else:  # the converted name of a page, or of a file of another format
            self.outputs.write(path, read_image_file(source.with_suffix("")))

    def discard_moved(self) -> None:
        """Remove what an earlier run wrote to another split: it would be in both."""
        for place, name, _ in self.files:
            for split in SPLITS if "{split}" in place else ():
                if (place, name, split) not in self.files:
                    self.outputs.discard(self.path(place, name, split))
