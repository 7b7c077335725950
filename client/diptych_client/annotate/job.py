"""A labelling job: the task with its parameters and model, and the image files of the folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from diptych_client.long_runs import RunError
from diptych_client.requests import AnswerOptions, TaskParameters, given_fields


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


def check_folders(images: Path, out: Path) -> None:
    """Raise `RunError` if one folder contains the other: output would mix with images."""
    source = images.resolve()
    target = out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        rule = f"must be outside the image folder {images}, and must not contain it"
        raise RunError(f"--out {out} {rule}")
