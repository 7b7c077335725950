"""The prompts that ask a model a question, made by the same code as the service's."""

from collections.abc import Iterator
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
    """One prompt of a question, and the labels that it asks for; none where it asks for everything."""

    segments: Prompt
    labels: tuple[str, ...]


def question_prompts(entry: CatalogEntry, question: Question) -> Iterator[QuestionPrompt]:
    """Yield the prompts by which `entry`'s model is asked, none where it does not offer the question."""
    if not entry.offers(question.task):
        return
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    try:
        prompts = FAMILIES[entry.family].task_prompts(entry, question.task, parameters, (CANVAS_PX, CANVAS_PX))
    except UnsupportedVariant:
        return  # a variant that this family does not offer
    labels = parameters.labels or ()
    per_prompt = asked_per_prompt(question.task, parameters) if len(prompts) > 1 else (labels,)
    for segments, asked in zip(prompts, per_prompt, strict=True):
        yield QuestionPrompt(segments, asked if parameters.labels else ())
