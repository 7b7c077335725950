"""Florence-2's prompts: the sentence of a task token (`<OD>`, …), with text or region.

`read_prompt` reads task tokens as users of its processor write them: `<OD>`,
`<CAPTION_TO_PHRASE_GROUNDING>a cat`, `<REGION_TO_OCR><loc_52><loc_332><loc_932><loc_774>`.

Source: transformers, models/florence2/processing_florence2.py
(task_prompts_without_inputs, task_prompts_with_input).
"""

import re

from tasks.catalog import QUESTION_FIELD, CatalogEntry
from tasks.errors import ParameterError, UnsupportedTask, UnsupportedVariant
from tasks.florence2.locations import box_tokens, dequantize
from tasks.parameters import TaskParameters
from tasks.parsing import without_article
from tasks.prompts import AskedTask, Prompt, PromptSegment, fill_template, join_segments

_SENTENCES = {
    "object_detection": "Locate the objects with category name in the image.",
    "open_vocabulary_detection": "Locate {text} in the image.",
    "phrase_grounding": "Locate the phrases in the caption: {text}",
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
    "phrase": "Locate {text} in the image with mask",
    "region": "What is the polygon mask of region {region}",
}
_REGION_DESCRIPTION = {
    "category": "What is the region {region}?",
    "description": "What does the region {region} describe?",
    "text": "What text is in the region {region}?",
}

_TASK_TOKEN = re.compile(r"\s*<([A-Z_]+)>(.*)", re.DOTALL)
_REGION = re.compile(r"\s*" + r"<loc_(\d{1,3})>" * 4 + r"\s*")
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
    if task_id not in entry.task_ids:
        raise UnsupportedTask(
            f"{entry.id} does not offer {task_id}; it offers {', '.join(entry.task_ids)}"
        )
    if parameters.language not in (None, "en"):
        message = f"{entry.id} supports language en only, not {parameters.language}"
        raise UnsupportedVariant("language", message)
    sentence = _sentence(entry, task_id, parameters)
    if (region := parameters.region) is not None:
        width, height = image_size_wh
        if region[2] > width or region[3] > height:
            allowed = f"within the image: x from 0 to {width}, y from 0 to {height}"
            raise ParameterError("region", f"region must be {allowed}; it is {list(region)}")
        before, after = map(PromptSegment, sentence.split("{region}"))
        tokens = PromptSegment(box_tokens(region, image_size_wh), is_control=True)
        return (join_segments(before, tokens, after),)
    texts = [parameters.caption or parameters.question or parameters.phrase or ""]
    # Labels and phrases are located one by one as open vocabulary, without their article: one
    # phrase grounding prompt with all of them, with or without articles, misses more. So does a
    # label with its article: over 200 scenes florence-2-mini answers .115 right for "a circle" and
    # .965 for "circle".
    if names := parameters.labels or parameters.phrases:
        texts = [without_article(name) for name in names]
    return tuple(fill_template(sentence, "{text}", text) for text in texts)


def read_prompt(text: str) -> AskedTask | None:
    """Return the task requested by `text`, or None if it does not start with a task token."""
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
        match = _REGION.fullmatch(rest)
        if match is None:
            allowed = "a region <loc_x1><loc_y1><loc_x2><loc_y2> of bins 0 to 999"
            message = f"<{token}> must be followed by {allowed}, not by {rest[:80]!r}"
            raise ParameterError("messages", message)
        x1, y1, x2, y2 = (dequantize(int(bin_index), 1) for bin_index in match.groups())
        return AskedTask(task_id, values, (x1, y1, x2, y2))
    tokens = ", ".join(f"<{each}>" for each in (*_ALONE, *_WITH_TEXT, *_WITH_REGION))
    raise ParameterError("messages", f"<{token[:80]}> is not a task token; allowed are {tokens}")


def asked_per_prompt(parameters: TaskParameters) -> tuple[tuple[str, ...], ...]:
    """Return the names requested by each prompt of `task_prompts`."""
    if names := parameters.labels or parameters.phrases:
        return tuple((name,) for name in names)
    return (() if parameters.phrase is None else (parameters.phrase,),)


def _sentence(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            return _CAPTIONING[parameters.detail or "short"]
        case "instance_segmentation":
            return _INSTANCE_SEGMENTATION["phrase" if parameters.region is None else "region"]
        case "region_description":
            return _REGION_DESCRIPTION[parameters.detail or "description"]
        case "phrase_grounding" if parameters.phrases:
            return _SENTENCES["open_vocabulary_detection"]
        case "visual_question_answering":
            return (entry.template(task_id) or QUESTION_FIELD).replace(QUESTION_FIELD, "{text}")
        case _:
            return _SENTENCES[task_id]
