"""The prompts that a model receives for a question, built by the service's own code."""

from dataclasses import dataclass

from export.scenes.scene import CANVAS_PX
from export.scenes.truth import Question
from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedVariant
from tasks.families import FAMILIES
from tasks.florence2.prompts import asked_per_prompt
from tasks.parameters import parse_parameters
from tasks.prompts import Prompt
from tasks.table import TASKS


@dataclass(frozen=True, slots=True)
class QuestionPrompt:
    """One prompt of a question and its labels; without labels the answer covers all."""

    segments: Prompt
    labels: tuple[str, ...]


def question_prompts(
    entry: CatalogEntry, question: Question, image_size_wh: tuple[int, int] = (CANVAS_PX, CANVAS_PX)
) -> tuple[QuestionPrompt, ...]:
    """Return a question's prompts for `entry`; none if the model does not offer it."""
    if question.task not in entry.task_ids:
        return ()
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    try:
        prompts = FAMILIES[entry.family].task_prompts(
            entry, question.task, parameters, image_size_wh
        )
    except UnsupportedVariant:
        return ()
    labels = parameters.labels or ()
    per_prompt = asked_per_prompt(parameters) if len(prompts) > 1 else (labels,)
    return tuple(
        QuestionPrompt(segments, own) for segments, own in zip(prompts, per_prompt, strict=True)
    )
