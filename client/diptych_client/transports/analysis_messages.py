"""Analyses and stored images from the JSON of REST. Knows no connection."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from diptych_client.analysis import Analysis, StepAnswer, StepAnswers
from diptych_client.errors import ErrorDetail
from diptych_client.geometry import ImageSize
from diptych_client.results import ModelFailure
from diptych_client.transports.rest_messages import answer_from_json, answer_json

Json = Mapping[str, Any]


def analysis_from_json(body: Json) -> Analysis:
    image = ImageSize(body["image"]["width"], body["image"]["height"])
    return Analysis(body["id"], image, tuple(map(_step, body["steps"])))


def analysis_json(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as the JSON of REST, the inverse of `analysis_from_json`."""
    steps: list[dict[str, Any]] = []
    for step in analysis.steps:
        answers: list[dict[str, Any]] = []
        for answer in step.answers:
            place = {"of": answer.of, "view": answer.view_xyxy}
            row: dict[str, Any] = {name: each for name, each in place.items() if each is not None}
            outcome = answer.outcome
            if isinstance(outcome, ModelFailure):
                answers.append({**row, "model": outcome.model, "error": asdict(outcome.error)})
            else:
                answers.append(row | answer_json(outcome))
        of_step = {"id": step.id, "task": step.task, "truncated": step.truncated}
        steps.append({**of_step, "answers": answers})
    return {"id": analysis.id, "image": asdict(analysis.image), "steps": steps}


def stored_id(body: Json) -> str:
    """Return the id of a stored image."""
    found: str = body["id"]
    return found


def _step(row: Json) -> StepAnswers:
    return StepAnswers(
        row["id"], row["task"], row["truncated"], tuple(map(_step_answer, row["answers"]))
    )


def _step_answer(row: Json) -> StepAnswer:
    view = row.get("view")
    place = (row.get("of"), None if view is None else tuple(view))
    if "error" in row:
        error = row["error"]
        detail = ErrorDetail(error["code"], error["message"], error["param"], error["request_id"])
        return StepAnswer(ModelFailure(row["model"], detail), *place)
    return StepAnswer(answer_from_json(row), *place)
