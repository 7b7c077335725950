"""Attempts at a shard, in files that outlive a worker that an image kills.

    .incomplete/part-00000012.attempt-0001    empty: images are in progress together
    .incomplete/part-00000012.attempt-0002    the position of the image that is in progress alone

The first attempt answers the images of a shard together. If its worker dies, further attempts
answer them one by one, alone in their worker, and write the position of each before it begins. A
worker that dies then was killed by that image, which no further attempt answers: the shard has one
image less after every death, so that the run ends.
"""

import posixpath
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from offline.filesystems import file_system
from offline.output import Output


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a shard; `deaths` counts the workers that died alone with an image."""

    output: Output
    index: int  # the shard
    number: int = 1
    deaths: Counter[int] = field(default_factory=Counter)

    @classmethod
    def begin(cls, output: Output, index: int) -> Self:
        """Read the attempts whose workers died, and record this one."""
        files, _ = file_system(output.uri)
        deaths = Counter[int]()
        attempt = cls(output, index)
        while files.exists(attempt._path):
            if position := files.cat_file(attempt._path):
                deaths[int(position)] += 1
            attempt = cls(output, index, attempt.number + 1, deaths)
        files.makedirs(posixpath.dirname(attempt._path), exist_ok=True)
        files.pipe_file(attempt._path, b"")
        return attempt

    def record(self, position: int) -> None:
        """Record that the image of a position is read and answered next."""
        file_system(self.output.uri)[0].pipe_file(self._path, str(position).encode())

    def end(self) -> None:
        """Forget all attempts: the shard is written."""
        files, _ = file_system(self.output.uri)
        for number in range(1, self.number + 1):
            # a worker that was taken for dead may have ended its own
            with suppress(FileNotFoundError):
                files.rm_file(Attempt(self.output, self.index, number)._path)

    @property
    def _path(self) -> str:
        return self.output.incomplete_path(f"part-{self.index:08}.attempt-{self.number:04}")
