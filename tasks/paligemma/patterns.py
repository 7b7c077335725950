"""The pattern of a well-formed answer of each task: the grammar (see `grammar`), as a decoder can hold to it."""

from tasks.answer_patterns import (
    LOCATION,
    SEGMENTATION,
    TEXT,
    ExactText,
    Pattern,
    at_least,
    in_order,
    one_of,
    optional,
    times,
)
from tasks.paligemma.prompts import asked_names
from tasks.parameter_kinds import SEPARATOR
from tasks.parameters import TaskParameters

_BOX = times(LOCATION, 4)
_CODES = times(SEGMENTATION, 16)
# A token may hold a space with what follows: each way to write it is a text of its own.
_SEPARATORS = one_of(*(ExactText(f"{before}{SEPARATOR}{after}") for before in ("", " ") for after in ("", " ")))


def answer_pattern(task_id: str, parameters: TaskParameters) -> Pattern | None:
    """Return the pattern of the answer to each prompt of a task, None where any text is well formed.

    A detected label is one of those asked for.
    """
    match task_id:
        case "open_vocabulary_detection" | "phrase_grounding":
            labels = (ExactText(f"{space}{name}") for name in asked_names(parameters) for space in ("", " "))
            return _entries(in_order(_BOX, one_of(*labels)))
        case "instance_segmentation":
            return _entries(in_order(_BOX, _CODES, at_least(TEXT, 1)))
        case _:
            return None


def _entries(entry: Pattern) -> Pattern:
    """Return any number of entries, none included, joined by the separator."""
    return optional(in_order(entry, at_least(in_order(_SEPARATORS, entry), 0)))
