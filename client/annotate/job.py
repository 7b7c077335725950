"""What is asked about every image of a folder: one thing in one journal."""

import json
from dataclasses import dataclass

from client.requests import AnswerOptions, TaskParameters, given_fields


class AnnotationError(Exception):
    """A folder cannot be labelled as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Job:
    """A task, its parameters, and the model that does it."""

    task: str
    model: str
    parameters: TaskParameters
    options: AnswerOptions

    def fields(self) -> dict[str, object]:
        """Return what is asked in JSON's types."""
        given = {"task": self.task, "model": self.model, **given_fields(self.parameters, self.options)}
        fields: dict[str, object] = json.loads(json.dumps(given))
        return fields

    def asked_labels(self) -> tuple[str, ...]:
        """Return the labels that were asked for by name: the first classes of a dataset."""
        return tuple(self.parameters.labels or self.parameters.phrases or ())
