"""Analyses, and the answers about several images, as JSON models and their rendering."""

from collections.abc import Iterable

from pydantic import Field

from service.analysis.execution import Analysis, StepAnswer, StepAnswers
from service.errors import ServiceError
from service.schema.rendering import answer_json, error_detail
from service.schema.wire import (
    AnswerJson,
    ComparisonJson,
    ErrorDetail,
    ErrorJson,
    ImageJson,
    Wire,
)


def _is_none(value: object) -> bool:
    return value is None


class AskedAbout(Wire):
    """The object and the part of the image that an answer is about."""

    of: int | None = Field(
        None,
        exclude_if=_is_none,
        description="index among the objects of the step that `each` names, over all its answers",
    )
    view: tuple[int, int, int, int] | None = Field(
        None, exclude_if=_is_none, description="the crop in pixels: left, top, right, bottom"
    )


class StepAnswerJson(AnswerJson, AskedAbout):
    """One model's answer in a step; its boxes are in pixels of the whole image."""


class StepErrorJson(AskedAbout):
    """A failed answer of a step; the others still answer."""

    model: str
    error: ErrorDetail


class StepJson(Wire):
    """The answers of a step: about the object with the best score first."""

    id: str
    task: str
    truncated: bool = Field(description="true: more objects than `max_each` or the service allows")
    answers: list[StepAnswerJson | StepErrorJson]


class AnalysisJson(Wire):
    """The answers of all steps, in the order of the request."""

    id: str
    image: ImageJson
    steps: list[StepJson]


OneJson = AnswerJson | ComparisonJson | AnalysisJson  # the body about one image


class SeveralJson(Wire):
    """The answers about several images, in order: each as if it were alone, or its error."""

    id: str
    answers: list[OneJson | ErrorJson]


def step_answer_json(answer: StepAnswer, request_id: str) -> StepAnswerJson | StepErrorJson:
    outcome = answer.outcome
    if isinstance(outcome, ServiceError):
        error = error_detail(outcome, request_id)
        return StepErrorJson(of=answer.of, view=answer.view, model=answer.model.id, error=error)
    return StepAnswerJson(of=answer.of, view=answer.view, **dict(answer_json(outcome, request_id)))


def step_json(step: StepAnswers, request_id: str) -> StepJson:
    return StepJson(
        id=step.step.options.id,
        task=step.step.task.id,
        truncated=step.is_truncated,
        answers=[step_answer_json(answer, request_id) for answer in step.answers],
    )


def analysis_json(analysis: Analysis, request_id: str) -> AnalysisJson:
    width, height = analysis.image_size_wh
    steps = [step_json(step, request_id) for step in analysis.steps]
    return AnalysisJson(id=request_id, image=ImageJson(width=width, height=height), steps=steps)


def several_json(outcomes: Iterable[OneJson | ServiceError], request_id: str) -> SeveralJson:
    """Return the outcomes about several images, in order."""
    answers: list[OneJson | ErrorJson] = []
    for outcome in outcomes:
        if isinstance(outcome, ServiceError):
            answers.append(ErrorJson(error=error_detail(outcome, request_id)))
        else:
            answers.append(outcome)
    return SeveralJson(id=request_id, answers=answers)
