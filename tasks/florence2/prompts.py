"""Florence-2's prompts: the sentence of a task token (`<OD>`, …), with text or region.

`read_prompt` reads task tokens as users of its processor write them: `<OD>`,
`<CAPTION_TO_PHRASE_GROUNDING>a cat`, `<REGION_TO_OCR><loc_52><loc_332><loc_932><loc_774>`.

Source: transformers, models/florence2/processing_florence2.py
(task_prompts_without_inputs, task_prompts_with_input).
"""

import re

from tasks.catalog import CatalogEntry
from tasks.errors import ParameterError
from tasks.florence2.grammar import box_tokens, dequantize
from tasks.parsing import Location, without_article
from tasks.prompts import (
    AskedTask,
    Prompt,
    PromptSegment,
    entry_template,
    fill_prompts,
    read_templates,
    unsupported,
)
from tasks.table import TaskParameters

_NAME = "Locate {phrase} in the image."
_SENTENCES = {
    "object_detection": "Locate the objects with category name in the image.",
    "open_vocabulary_detection": _NAME,
    "region_proposal": "Locate the region proposals in the image.",
    "dense_region_captioning": "Locate the objects in the image, with their descriptions.",
    "ocr": "What is the text in the image?",
    "ocr_with_regions": "What is the text in the image, with regions?",
}
_VARIANTS = {  # of a task, by its detail or parameter
    ("captioning", "short"): "What does the image describe?",
    ("captioning", "detailed"): "Describe in detail what is shown in the image.",
    ("captioning", "paragraph"): "Describe with a paragraph what is shown in the image.",
    ("phrase_grounding", "caption"): "Locate the phrases in the caption: {caption}",
    ("phrase_grounding", "phrases"): _NAME,
    ("instance_segmentation", "phrase"): "Locate {phrase} in the image with mask",
    ("instance_segmentation", "region"): "What is the polygon mask of region {region}",
    ("region_description", "category"): "What is the region {region}?",
    ("region_description", "description"): "What does the region {region} describe?",
    ("region_description", "text"): "What text is in the region {region}?",
}
_NAMED_TASKS = ("open_vocabulary_detection", "phrase_grounding")  # by labels or phrases

_TASK_TOKEN = re.compile(r"\s*<([A-Z_]+)>(.*)", re.DOTALL)
_LOCATION = re.compile(r"<loc_(\d{1,3})>")
_REGION = _LOCATION.pattern.replace("(", "(?:") * 4
_QUESTION_TASK = "visual_question_answering"
# the task of each token, its detail, and the parameter that follows the token
_TOKENS: dict[str, tuple[str, str, str]] = {
    "CAPTION": ("captioning", "short", ""),
    "DETAILED_CAPTION": ("captioning", "detailed", ""),
    "MORE_DETAILED_CAPTION": ("captioning", "paragraph", ""),
    "OD": ("object_detection", "", ""),
    "REGION_PROPOSAL": ("region_proposal", "", ""),
    "DENSE_REGION_CAPTION": ("dense_region_captioning", "", ""),
    "OCR": ("ocr", "", ""),
    "OCR_WITH_REGION": ("ocr_with_regions", "", ""),
    "OPEN_VOCABULARY_DETECTION": ("open_vocabulary_detection", "", "labels"),
    "CAPTION_TO_PHRASE_GROUNDING": ("phrase_grounding", "", "caption"),
    "REFERRING_EXPRESSION_SEGMENTATION": ("instance_segmentation", "", "phrase"),
    "REGION_TO_SEGMENTATION": ("instance_segmentation", "", "region"),
    "REGION_TO_CATEGORY": ("region_description", "category", "region"),
    "REGION_TO_DESCRIPTION": ("region_description", "description", "region"),
    "REGION_TO_OCR": ("region_description", "text", "region"),
}


def task_prompts(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    has_own_tokens = task_id == _QUESTION_TASK and task_id not in entry.templates
    if has_own_tokens and (own_token := _own_token_prompt(parameters.question or "")):
        return (own_token,)
    sentence = entry_template(entry, task_id, parameters)
    if parameters.language not in (None, "en"):
        raise unsupported(entry, "language", "en", parameters.language)
    if sentence is None:
        sentence = _SENTENCES.get(task_id) or _VARIANTS[task_id, _variant(task_id, parameters)]
    # The processor asks for one name at a time: labels and phrases have a prompt each.
    names = parameters.labels or parameters.phrases or (parameters.phrase or "",)
    if entry.drops_articles and task_id in _NAMED_TASKS:
        names = tuple(map(without_article, names))
    return fill_prompts(sentence, parameters, names, image_size_wh, box_tokens)


def read_prompt(entry: CatalogEntry, text: str) -> AskedTask | None:
    """Return the task requested by `text`, or None if it does not start with a task token.

    A token that is none of the processor's is asked as a question: fine-tunes have tokens of their
    own, such as `<GENERATE_TAGS>`.
    """
    match = _TASK_TOKEN.match(text)
    if match is None:
        return None
    token, rest = match.groups()
    if token not in _TOKENS:
        return _read_own_token(entry, text, token)
    task_id, detail, parameter = _TOKENS[token]
    values: dict[str, object] = {"detail": detail} if detail else {}
    if not parameter and rest.strip():
        message = f"<{token}> takes no input, but {rest[:80]!r} follows it"
        raise ParameterError("messages", message)
    if parameter == "region":
        if re.fullmatch(_REGION, rest.strip()) is None:
            allowed = "a region <loc_x1><loc_y1><loc_x2><loc_y2> of bins 0 to 999"
            message = f"<{token}> must be followed by {allowed}, not by {rest[:80]!r}"
            raise ParameterError("messages", message)
        locations = [Location(int(token[1]), token.span()) for token in _LOCATION.finditer(rest)]
        top_left, bottom_right = dequantize(locations, (1, 1))
        return AskedTask(task_id, values, (*top_left, *bottom_right))
    if parameter:
        values[parameter] = [rest] if parameter == "labels" else rest
    return AskedTask(task_id, values)


def _read_own_token(entry: CatalogEntry, text: str, token: str) -> AskedTask:
    if asked_task := read_templates(entry, text, _REGION, f"<{token}>"):
        return asked_task
    if _QUESTION_TASK not in entry.templates:
        return AskedTask(_QUESTION_TASK, {"question": text})
    tokens = ", ".join(f"<{name}>" for name in _TOKENS)
    raise ParameterError(
        "messages",
        f"<{token[:80]}> is not a task token of {entry.id}; allowed are {tokens}, and those of"
        " template: in its catalog entry",
    )


def asked_per_prompt(parameters: TaskParameters) -> tuple[tuple[str, ...], ...]:
    """Return the names requested by each prompt of `task_prompts`."""
    if names := parameters.labels or parameters.phrases:
        return tuple((name,) for name in names)
    return (() if parameters.phrase is None else (parameters.phrase,),)


def _own_token_prompt(question: str) -> Prompt | None:
    """Return the prompt of a question that begins with a task token of the checkpoint's own.

    Only capitals and underscores are read as one: no token of answers or of prompts' ends is
    written so. A model with a template for questions gets them as text.
    """
    match = _TASK_TOKEN.match(question)
    if match is None or match[1] in _TOKENS:
        return None
    token, rest = match.groups()
    segments = (PromptSegment(f"<{token}>", is_control=True, is_token=True), PromptSegment(rest))
    return tuple(segment for segment in segments if segment.text)


def _variant(task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            return parameters.detail or "short"
        case "region_description":
            return parameters.detail or "description"
        case "instance_segmentation":
            return "phrase" if parameters.region is None else "region"
        case _:
            return "phrases" if parameters.phrases else "caption"
