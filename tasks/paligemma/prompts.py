"""PaliGemma's prompts: a task word, a language or objects, always plain text.

Source: google-research/big_vision, big_vision/configs/proj/paligemma (README.md, transfers), and the PaliGemma paper,
arXiv 2407.07726, section 3.2.
"""

import re

from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask, UnsupportedVariant
from tasks.parameter_kinds import SEPARATOR
from tasks.parameters import TaskParameters
from tasks.prompts import Prompt, join_segments, plain

_CAPTIONING = {"short": "caption", "detailed": "describe"}
_SEVERAL_PHRASES = re.compile(rf"[,{SEPARATOR}]|\band\b", re.IGNORECASE)


def task_prompts(
    entry: CatalogEntry,
    task_id: str,
    parameters: TaskParameters,
    image_size_wh: tuple[int, int],  # noqa: ARG001  # one interface for both families; this one takes no region
) -> tuple[Prompt, ...]:
    """Return the prompt of a task; raise `UnsupportedTask` or `UnsupportedVariant`."""
    if not entry.offers(task_id):
        raise UnsupportedTask(f"{entry.id} does not offer {task_id}; it offers {', '.join(entry.task_ids)}")
    return (join_segments(plain(_text(entry, task_id, parameters))),)


def asked_names(parameters: TaskParameters) -> tuple[str, ...]:
    """Return the names of objects that the prompt asks for."""
    single = parameters.phrase or parameters.caption
    return (single,) if single else parameters.labels or parameters.phrases or ()


def _text(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            return f"{_captioning_word(entry, parameters)} {parameters.language}"
        case "open_vocabulary_detection" | "phrase_grounding":
            _check_one_phrase(entry, parameters.caption)
            return f"detect {f' {SEPARATOR} '.join(asked_names(parameters))}"
        case "instance_segmentation":
            if parameters.region is not None:
                raise UnsupportedVariant("region", f"{entry.id} segments a phrase only, not a region")
            return f"segment {parameters.phrase}"
        case "visual_question_answering":
            return f"answer {parameters.language} {parameters.question}"
        case _:
            return task_id


def _captioning_word(entry: CatalogEntry, parameters: TaskParameters) -> str:
    detail = parameters.detail or "short"
    if detail not in _CAPTIONING:
        raise UnsupportedVariant("detail", f"{entry.id} knows detail {' and '.join(_CAPTIONING)} only, not {detail}")
    return _CAPTIONING[detail]


def _check_one_phrase(entry: CatalogEntry, caption: str | None) -> None:
    if caption and _SEVERAL_PHRASES.search(caption):
        allowed = "a caption that is one phrase (no comma, semicolon or 'and'); give the phrases as phrases"
        raise UnsupportedVariant("caption", f"{entry.id} grounds {allowed}")
