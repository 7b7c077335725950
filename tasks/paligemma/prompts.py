"""PaliGemma's prompts: a task word, then a language or object names, always plain text.

`read_prompt` reads them back: `caption en`, `ocr`, `detect red circle ; star`, `answer en what
color is the star?`.

One prompt detects all names; an entry with `one_name_per_prompt` has a prompt for each.
paligemma-mini was trained with an absent name among every several, so that it leaves one out when
all are present: over 200 scenes it answers .24 right for all names by one prompt and 1.00 by one
for each, in 0.96 times the time (median; two shared cores). The released checkpoints are not
measured, and one prompt for each name would prefill their long image prefix as often.

Source: google-research/big_vision, big_vision/configs/proj/paligemma (README.md, transfers), and
the PaliGemma paper, arXiv 2407.07726, section 3.2.
"""

import re
from dataclasses import replace

from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask, UnsupportedVariant
from tasks.parameter_kinds import SEPARATOR
from tasks.parameters import TaskParameters
from tasks.prompts import AskedTask, Prompt, PromptSegment

_CAPTIONING = {"short": "caption", "detailed": "describe"}
_SEVERAL_PHRASES = re.compile(rf"[,{SEPARATOR}]|\band\b", re.IGNORECASE)
_WORD = re.compile(r"(caption|describe|ocr|detect|segment|answer)\b\s*(.*)", re.DOTALL)
_DETAILS = {word: detail for detail, word in _CAPTIONING.items()}


def task_prompts(
    entry: CatalogEntry,
    task_id: str,
    parameters: TaskParameters,
    # Florence-2's; no prompt of this family has a region
    image_size_wh: tuple[int, int],  # noqa: ARG001
) -> tuple[Prompt, ...]:
    """Return the prompts of a task: one, or one per name."""
    if task_id not in entry.task_ids:
        raise UnsupportedTask(
            f"{entry.id} does not offer {task_id}; it offers {', '.join(entry.task_ids)}"
        )
    prompts = [parameters]
    if entry.one_name_per_prompt and parameters.labels:
        prompts = [replace(parameters, labels=(name,)) for name in parameters.labels]
    elif entry.one_name_per_prompt and parameters.phrases:
        prompts = [replace(parameters, phrases=(name,)) for name in parameters.phrases]
    return tuple((PromptSegment(_text(entry, task_id, each)),) for each in prompts)


def read_prompt(text: str) -> AskedTask | None:
    """Return the task requested by `text`, or None if it does not have a task's form."""
    match = _WORD.fullmatch(text.strip())
    if match is None:
        return None
    word, rest = match.groups()
    match word:
        case "ocr" if not rest:
            return AskedTask("ocr")
        case "caption" | "describe" if len(rest.split()) == 1:
            return AskedTask("captioning", {"detail": _DETAILS[word], "language": rest})
        case "detect" if rest:
            names = [name.strip() for name in rest.split(SEPARATOR)]
            return AskedTask("open_vocabulary_detection", {"labels": names})
        case "segment" if rest:
            return AskedTask("instance_segmentation", {"phrase": rest})
        case "answer" if len(rest.split(maxsplit=1)) == 2:
            language, question = rest.split(maxsplit=1)
            values = {"question": question, "language": language}
            return AskedTask("visual_question_answering", values)
    return None


def asked_names(parameters: TaskParameters) -> tuple[str, ...]:
    """Return the object names requested by all prompts."""
    single = parameters.phrase or parameters.caption
    return (single,) if single else parameters.labels or parameters.phrases or ()


def _text(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            detail = parameters.detail or "short"
            if detail not in _CAPTIONING:
                allowed = " and ".join(_CAPTIONING)
                message = f"{entry.id} supports detail {allowed} only, not {detail}"
                raise UnsupportedVariant("detail", message)
            return f"{_CAPTIONING[detail]} {parameters.language}"
        case "open_vocabulary_detection" | "phrase_grounding":
            if parameters.caption and _SEVERAL_PHRASES.search(parameters.caption):
                allowed = "a caption of one phrase only, without comma, semicolon or 'and'"
                message = f"{entry.id} supports {allowed}; send several as phrases"
                raise UnsupportedVariant("caption", message)
            return f"detect {f' {SEPARATOR} '.join(asked_names(parameters))}"
        case "instance_segmentation":
            if parameters.region is not None:
                message = f"{entry.id} segments by phrase only, not by region"
                raise UnsupportedVariant("region", message)
            return f"segment {parameters.phrase}"
        case "visual_question_answering":
            return f"answer {parameters.language} {parameters.question}"
        case _:
            return task_id
