"""Analyses: the answers of many steps about one image, as values."""

from collections.abc import Iterator
from dataclasses import dataclass

from diptych_client.geometry import ImageSize
from diptych_client.results import Answer, ModelFailure

ViewXyxy = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """One model's answer in a step, or its error."""

    outcome: Answer | ModelFailure
    of: int | None = None  # index among the objects of the step that `each` names
    view_xyxy: ViewXyxy | None = None  # the crop, if any; boxes are in pixels of the whole image


@dataclass(frozen=True, slots=True)
class StepAnswers:
    """The answers of a step: about the object with the best score first."""

    id: str
    task: str
    truncated: bool  # more objects than `max_each` or the service allows
    answers: tuple[StepAnswer, ...]

    def of(self, index: int | None = None) -> Iterator[Answer]:
        """Yield the answers about an object, without failures."""
        for answer in self.answers:
            if answer.of == index and isinstance(answer.outcome, Answer):
                yield answer.outcome


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answers of all steps, in the order of the request."""

    id: str
    image: ImageSize
    steps: tuple[StepAnswers, ...]

    def step(self, step_id: str) -> StepAnswers:
        """Return the step of an id; raise `KeyError`."""
        for step in self.steps:
            if step.id == step_id:
                return step
        raise KeyError(step_id)
