"""Florence-2's prompts: the sentence of a task token (`<OD>`, …), with text or region.

`read_prompt` reads task tokens as users of its processor write them: `<OD>`,
`<CAPTION_TO_PHRASE_GROUNDING>a cat`, `<REGION_TO_OCR><loc_52><loc_332><loc_932><loc_774>`.

Source: transformers, models/florence2/processing_florence2.py
(task_prompts_without_inputs, task_prompts_with_input).
"""

import re

from tasks.catalog import CatalogEntry
from tasks.errors import ParameterError, UnsupportedTask, UnsupportedVariant
from tasks.florence2.locations import box_tokens, dequantize
from tasks.parameters import TaskParameters
from tasks.parsing import without_article
from tasks.prompts import (
    AskedTask,
    Prompt,
    PromptSegment,
    check_region,
    entry_template,
    fill_template,
    read_template,
)

_SENTENCES = {
    "object_detection": "Locate the objects with category name in the image.",
    "open_vocabulary_detection": "Locate {phrase} in the image.",
    "phrase_grounding": "Locate the phrases in the caption: {caption}",
    "region_proposal": "Locate the region proposals in the image.",
    "dense_region_captioning": "Locate the objects in the image, with their descriptions.",
    "ocr": "What is the text in the image?",
    "ocr_with_regions": "What is the text in the image, with regions?",
}
_CAPTIONING = {
    "short": "What does the image describe?",
    "detailed": "Describe in detail what is shown in the image.",
    "paragraph": "Describe with a paragraph what is shown in the image.",
}
_INSTANCE_SEGMENTATION = {
    "phrase": "Locate {phrase} in the image with mask",
    "region": "What is the polygon mask of region {region}",
}
_REGION_DESCRIPTION = {
    "category": "What is the region {region}?",
    "description": "What does the region {region} describe?",
    "text": "What text is in the region {region}?",
}

_TASK_TOKEN = re.compile(r"\s*<([A-Z_]+)>(.*)", re.DOTALL)
_LOCATION = re.compile(r"<loc_(\d{1,3})>")
_REGION = _LOCATION.pattern.replace("(", "(?:") * 4
_ALONE = {
    "CAPTION": AskedTask("captioning", {"detail": "short"}),
    "DETAILED_CAPTION": AskedTask("captioning", {"detail": "detailed"}),
    "MORE_DETAILED_CAPTION": AskedTask("captioning", {"detail": "paragraph"}),
    "OD": AskedTask("object_detection"),
    "REGION_PROPOSAL": AskedTask("region_proposal"),
    "DENSE_REGION_CAPTION": AskedTask("dense_region_captioning"),
    "OCR": AskedTask("ocr"),
    "OCR_WITH_REGION": AskedTask("ocr_with_regions"),
}
_QUESTION_TASK = "visual_question_answering"
_WITH_TEXT = {  # task and parameter
    "OPEN_VOCABULARY_DETECTION": ("open_vocabulary_detection", "labels"),
    "CAPTION_TO_PHRASE_GROUNDING": ("phrase_grounding", "caption"),
    "REFERRING_EXPRESSION_SEGMENTATION": ("instance_segmentation", "phrase"),
}
_WITH_REGION = {
    "REGION_TO_SEGMENTATION": ("instance_segmentation", {}),
    "REGION_TO_CATEGORY": ("region_description", {"detail": "category"}),
    "REGION_TO_DESCRIPTION": ("region_description", {"detail": "description"}),
    "REGION_TO_OCR": ("region_description", {"detail": "text"}),
}


def task_prompts(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    """Return the prompts of a task: one, or one per label or phrase."""
    if own_token := _own_token_prompt(entry, task_id, parameters):
        return (own_token,)
    if task_id not in entry.task_ids:
        raise UnsupportedTask(
            f"{entry.id} does not offer {task_id}; it offers {', '.join(entry.task_ids)}"
        )
    if parameters.language not in (None, "en"):
        message = f"{entry.id} supports language en only, not {parameters.language}"
        raise UnsupportedVariant("language", message)
    sentence = _sentence(entry, task_id, parameters)
    values = {
        "{language}": PromptSegment("en"),
        "{question}": PromptSegment(parameters.question or ""),
        "{caption}": PromptSegment(parameters.caption or ""),
    }
    if (region := parameters.region) is not None:
        check_region(region, image_size_wh)
        values["{region}"] = PromptSegment(box_tokens(region, image_size_wh), is_control=True)
    # The processor asks for one name at a time: labels and phrases have a prompt each.
    prompts: list[Prompt] = []
    for name in parameters.labels or parameters.phrases or (parameters.phrase or "",):
        text = without_article(name) if _drops_article(entry, task_id) else name
        values["{phrase}"] = PromptSegment(text)
        prompts.append(fill_template(sentence, values))
    return tuple(prompts)


def read_prompt(entry: CatalogEntry, text: str) -> AskedTask | None:
    """Return the task requested by `text`, or None if it does not start with a task token.

    A token that is none of the processor's is asked as a question: fine-tunes have tokens of their
    own, such as `<GENERATE_TAGS>`.
    """
    match = _TASK_TOKEN.match(text)
    if match is None:
        return None
    token, rest = match.groups()
    if token in _ALONE:
        if rest.strip():
            message = f"<{token}> takes no input, but {rest[:80]!r} follows it"
            raise ParameterError("messages", message)
        return _ALONE[token]
    if token in _WITH_TEXT:
        task_id, name = _WITH_TEXT[token]
        return AskedTask(task_id, {name: [rest] if name == "labels" else rest})
    if token in _WITH_REGION:
        task_id, values = _WITH_REGION[token]
        if re.fullmatch(_REGION, rest.strip()) is None:
            allowed = "a region <loc_x1><loc_y1><loc_x2><loc_y2> of bins 0 to 999"
            message = f"<{token}> must be followed by {allowed}, not by {rest[:80]!r}"
            raise ParameterError("messages", message)
        x1, y1, x2, y2 = (dequantize(int(bin_index), 1) for bin_index in _LOCATION.findall(rest))
        return AskedTask(task_id, values, (x1, y1, x2, y2))
    return _read_own_token(entry, text, token)


def _read_own_token(entry: CatalogEntry, text: str, token: str) -> AskedTask:
    """Return the task of a token that is none of the processor's; raise `ParameterError`."""
    for task_id in entry.task_ids:
        template = entry.template(task_id)
        if template is None or f"<{token}>" not in template:
            continue
        values = read_template(template, text, _REGION)
        if values is not None and "region" not in values:
            return AskedTask(task_id, values)
    if entry.template(_QUESTION_TASK) is None:
        return AskedTask(_QUESTION_TASK, {"question": text})
    tokens = ", ".join(f"<{name}>" for name in (*_ALONE, *_WITH_TEXT, *_WITH_REGION))
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


def _drops_article(entry: CatalogEntry, task_id: str) -> bool:
    return entry.drops_articles and task_id != "instance_segmentation"


def _own_token_prompt(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters
) -> Prompt | None:
    """Return the prompt of a question that begins with a task token of the checkpoint's own.

    Only capitals and underscores are read as one: no token of answers or of prompts' ends is
    written so. A model with a template for questions gets them as text.
    """
    match = _TASK_TOKEN.match(parameters.question or "")
    if task_id != _QUESTION_TASK or match is None or entry.template(task_id) is not None:
        return None
    token, rest = match.groups()
    is_known = token in (*_ALONE, *_WITH_TEXT, *_WITH_REGION)
    if is_known:
        return None
    segments = (PromptSegment(f"<{token}>", is_control=True, is_token=True), PromptSegment(rest))
    return tuple(segment for segment in segments if segment.text)


def _sentence(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    """Return the sentence of a task, whose fields are still to be filled."""
    if template := entry_template(entry, task_id, parameters):
        return template
    match task_id:
        case "captioning":
            return _CAPTIONING[parameters.detail or "short"]
        case "instance_segmentation":
            return _INSTANCE_SEGMENTATION["phrase" if parameters.region is None else "region"]
        case "region_description":
            return _REGION_DESCRIPTION[parameters.detail or "description"]
        case "phrase_grounding" if parameters.phrases:
            return _SENTENCES["open_vocabulary_detection"]
        case _:
            return _SENTENCES[task_id]
