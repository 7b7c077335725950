"""A job, which is a task for one model, and the records that it gives: images with answers."""

import json
from dataclasses import dataclass
from typing import Any

from diptych_client.datasets.inputs import ImageFile
from diptych_client.requests import AnswerOptions, TaskParameters, non_null_fields
from diptych_client.results import Answer, Item

QUESTIONS = "visual_question_answering"


@dataclass(frozen=True, slots=True)
class Job:
    """A task, its parameters, and one model."""

    task: str
    model: str
    parameters: TaskParameters
    options: AnswerOptions

    def fields(self) -> Any:
        """Return the fields of a request as values of JSON."""
        fields = non_null_fields(self.parameters, self.options)
        return json.loads(json.dumps({"task": self.task, "model": self.model, **fields}))

    def requested_labels(self) -> tuple[str, ...]:
        """Return the labels or phrases of the job, the first classes of its dataset."""
        return tuple(self.parameters.labels or self.parameters.phrases or ())


@dataclass(frozen=True, slots=True)
class Record:
    """An image and its answer."""

    image: ImageFile
    answer: Answer

    @property
    def items(self) -> tuple[Item, ...]:
        return self.answer.result.items
