"""All families behind one interface: prompts, grammar, and the parser of answers."""

from collections.abc import Sequence
from typing import Protocol

import tasks.florence2
import tasks.openai
import tasks.paligemma
from tasks.catalog import CatalogEntry
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.prompts import AskedTask, Prompt
from tasks.results import Result
from tasks.table import Family, TaskParameters


class FamilyLanguage(Protocol):
    """The interface of a family's module."""

    def task_prompts(
        self,
        entry: CatalogEntry,
        task_id: str,
        parameters: TaskParameters,
        image_size_wh: tuple[int, int],
    ) -> tuple[Prompt, ...]:
        """Return the prompts of a task, usually one; raise `TaskError`."""

    def read_prompt(self, entry: CatalogEntry, text: str) -> AskedTask | None:
        """Return the task that a prompt requests, None for free text; raise `ParameterError`."""

    def parse_answer(self, task: AnsweredTask, answers: Sequence[GeneratedText]) -> Result:
        """Return the typed result of the answers, given in the order of the prompts."""


class RunnerLanguage(FamilyLanguage, Protocol):
    """The interface of a family whose tokens a runner chooses."""

    def answer_grammar(
        self, entry: CatalogEntry, task_id: str, parameters: TaskParameters
    ) -> str | None:
        """Return the grammar of the answer to each prompt, or None if any text is valid.

        It is Lark as llguidance reads it, without the rules `location` and `segmentation`.
        """


RUNNER_FAMILIES: dict[Family, RunnerLanguage] = {
    "florence2": tasks.florence2,
    "paligemma": tasks.paligemma,
}
FAMILIES: dict[Family, FamilyLanguage] = {**RUNNER_FAMILIES, "openai": tasks.openai}
