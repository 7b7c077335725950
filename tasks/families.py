"""Both families behind one interface: prompts, grammar, and the parser of answers."""

from collections.abc import Sequence
from typing import Protocol

import tasks.florence2
import tasks.paligemma
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.parameters import TaskParameters
from tasks.parsing import GeneratedText
from tasks.prompts import AskedTask, Prompt
from tasks.results import MaskFormat, Result
from tasks.table import Family


class FamilyLanguage(Protocol):
    """The interface of a family's module."""

    def task_prompts(
        self,
        entry: CatalogEntry,
        task_id: str,
        parameters: TaskParameters,
        image_size_wh: tuple[int, int],
    ) -> tuple[Prompt, ...]:
        """Return the prompts of a task, usually one.

        Raise `UnsupportedTask`, `UnsupportedVariant`, or `ParameterError` (region outside image).
        """

    def read_prompt(self, entry: CatalogEntry, text: str) -> AskedTask | None:
        """Return the task that a prompt requests, None for free text; raise `ParameterError`."""

    def answer_grammar(
        self, entry: CatalogEntry, task_id: str, parameters: TaskParameters
    ) -> str | None:
        """Return the grammar of the answer to each prompt, or None if any text is valid.

        A grammar is Lark as llguidance reads it, with the rules `location` and `segmentation`
        defined elsewhere.
        """

    def parse_answer(
        self,
        entry: CatalogEntry,
        task_id: str,
        parameters: TaskParameters,
        answers: Sequence[GeneratedText],
        image_size_wh: tuple[int, int],
        mask_format: MaskFormat,
        mask_decoder: MaskDecoder | None,
        banned_phrases: frozenset[str] = frozenset(),
    ) -> Result:
        """Return the typed result of the answers, given in the order of the prompts.

        `mask_decoder` and `banned_phrases` are of the checkpoint: the former PaliGemma's, the
        latter Florence-2's.
        """


FAMILIES: dict[Family, FamilyLanguage] = {
    "florence2": tasks.florence2,
    "paligemma": tasks.paligemma,
}
