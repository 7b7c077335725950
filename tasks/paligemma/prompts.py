"""PaliGemma's prompts: a task word, then a language or object names, always plain text.

`read_prompt` reads them back: `caption en`, `ocr`, `detect red circle ; star`, `answer en what
color is the star?`. A catalog entry may have a prompt of its own, as its fine-tune was trained.

Source: google-research/big_vision, big_vision/configs/proj/paligemma (README.md, transfers), and
the PaliGemma paper, arXiv 2407.07726, section 3.2.
"""

import re
from dataclasses import replace

from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask
from tasks.paligemma.grammar import asked_names, box_tokens, dequantize
from tasks.prompts import (
    AskedTask,
    Prompt,
    entry_template,
    fill_prompts,
    read_templates,
    unsupported,
)
from tasks.table import SEPARATOR, TaskParameters

_CAPTIONING = {"short": "caption {language}", "detailed": "describe {language}"}
_TEMPLATES = {
    "open_vocabulary_detection": "detect {phrase}",
    "phrase_grounding": "detect {phrase}",
    "instance_segmentation": "segment {phrase}",
    "ocr": "ocr",
    "visual_question_answering": "answer {language} {question}",
}
_SEVERAL_PHRASES = re.compile(rf"[,{SEPARATOR}]|\band\b", re.IGNORECASE)
_JOIN = f" {SEPARATOR} "
_LOCATION = re.compile(r"<loc(\d{4})>")
_REGION = _LOCATION.pattern.replace("(", "(?:") * 4
_WORD = re.compile(r"(caption|describe|ocr|detect|segment|answer)\b\s*(.*)", re.DOTALL)
_DETAILS = {"caption": "short", "describe": "detailed"}


def task_prompts(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    template = entry_template(entry, task_id, parameters) or _template(entry, task_id, parameters)
    override = entry.tasks.get(task_id)
    if override is not None and override.separator is not None:
        question = (parameters.question or "").replace(_JOIN, override.separator)
        parameters = replace(parameters, question=question)
    texts = map(_JOIN.join, asked_per_prompt(entry, task_id, parameters))
    return fill_prompts(template, parameters, texts, image_size_wh, box_tokens)


def read_prompt(entry: CatalogEntry, text: str) -> AskedTask | None:
    """Return the task requested by `text`, or None if it does not have a task's form."""
    asked_task = _read_word(text.strip())
    if asked_task is not None and asked_task.task_id in entry.task_ids:
        return asked_task
    return read_templates(entry, text, _REGION) or asked_task


def asked_per_prompt(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters
) -> tuple[tuple[str, ...], ...]:
    """Return the names requested by each prompt of `task_prompts`: usually one prompt with all."""
    names = asked_names(parameters)
    is_single = entry.one_name_per_prompt or not entry.has_labels(task_id)
    return tuple((name,) for name in names) if is_single and names else (names,)


def _read_word(text: str) -> AskedTask | None:
    match = _WORD.fullmatch(text)
    if match is None:
        return None
    word, rest = match.groups()
    match word:
        case "ocr" if not rest:
            return AskedTask("ocr")
        case "caption" if re.fullmatch(_REGION, rest):
            y1, x1, y2, x2 = (dequantize(int(index), 1) for index in _LOCATION.findall(rest))
            return AskedTask("region_description", region_shares=(x1, y1, x2, y2))
        case "caption" | "describe" if len(rest.split()) == 1:
            return AskedTask("captioning", {"detail": _DETAILS[word], "language": rest})
        case "detect" if rest:
            return AskedTask("open_vocabulary_detection", {"labels": _names(rest)})
        case "segment" if SEPARATOR in rest:
            return AskedTask("instance_segmentation", {"phrases": _names(rest)})
        case "segment" if rest:
            return AskedTask("instance_segmentation", {"phrase": rest})
        case "answer" if len(rest.split(maxsplit=1)) == 2:
            language, question = rest.split(maxsplit=1)
            values = {"question": question, "language": language}
            return AskedTask("visual_question_answering", values)
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(SEPARATOR)]


def _template(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            detail = parameters.detail or "short"
            if detail not in _CAPTIONING:
                raise unsupported(entry, "detail", " and ".join(_CAPTIONING), detail)
            return _CAPTIONING[detail]
        case "phrase_grounding" if _SEVERAL_PHRASES.search(parameters.caption or ""):
            allowed = "a caption of one phrase only, without comma, semicolon or 'and'"
            message = f"{entry.id} supports {allowed}; send several as phrases"
            raise UnsupportedTask("caption", message)
        case "instance_segmentation" if parameters.region is not None:
            message = f"{entry.id} segments by phrase only, not by region"
            raise UnsupportedTask("region", message)
        case _:
            return _TEMPLATES[task_id]
