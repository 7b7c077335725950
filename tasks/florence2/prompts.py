"""Florence-2's prompts: the sentence that stands for a task token (`<OD>`, …), with the user's text or region in it.

Source of the sentences: transformers, models/florence2/processing_florence2.py (task_prompts_without_inputs,
task_prompts_with_input).
"""

from collections.abc import Sequence

from tasks.catalog import QUESTION_FIELD, CatalogEntry
from tasks.errors import ParameterError, UnsupportedTask, UnsupportedVariant
from tasks.florence2.locations import box_tokens
from tasks.parameters import TaskParameters
from tasks.prompts import Prompt, control, join_segments, plain
from tasks.results import BoxXyxy

# One prompt per label, or all labels in one phrase grounding prompt.
IS_ONE_PROMPT_PER_LABEL = True

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


def task_prompts(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    """Return the prompts of a task: one, or one per label.

    Raise `UnsupportedTask`, `UnsupportedVariant`, or `ParameterError` for a region that is not in the image.
    """
    if not entry.offers(task_id):
        raise UnsupportedTask(f"{entry.id} does not offer {task_id}; it offers {', '.join(entry.task_ids)}")
    if parameters.language not in (None, "en"):
        raise UnsupportedVariant("language", f"{entry.id} answers in en only, not in {parameters.language}")
    sentence = _sentence(entry, task_id, parameters)
    if parameters.region is not None:
        return (_with_region(sentence, parameters.region, image_size_wh),)
    return tuple(join_segments(plain(sentence.replace("{text}", text))) for text in _texts(task_id, parameters))


def asked_per_prompt(task_id: str, parameters: TaskParameters) -> tuple[tuple[str, ...], ...]:
    """Return for each prompt of `task_prompts` the names that it asks for."""
    names = parameters.labels or parameters.phrases or ()
    if task_id == "open_vocabulary_detection" and IS_ONE_PROMPT_PER_LABEL:
        return tuple((name,) for name in names)
    return (names if parameters.phrase is None else (parameters.phrase,),)


def _sentence(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    match task_id:
        case "captioning":
            return _CAPTIONING[parameters.detail or "short"]
        case "instance_segmentation":
            return _INSTANCE_SEGMENTATION["phrase" if parameters.region is None else "region"]
        case "region_description":
            return _REGION_DESCRIPTION[parameters.detail or "description"]
        case "open_vocabulary_detection" if len(parameters.labels or ()) > 1 and not IS_ONE_PROMPT_PER_LABEL:
            return _SENTENCES["phrase_grounding"]
        case "visual_question_answering":
            return (entry.template(task_id) or QUESTION_FIELD).replace(QUESTION_FIELD, "{text}")
        case _:
            return _SENTENCES[task_id]


def _texts(task_id: str, parameters: TaskParameters) -> Sequence[str]:
    """Return for each prompt the text that goes into its sentence."""
    if text := parameters.caption or parameters.question:
        return (text,)
    return [_enumeration(names) for names in asked_per_prompt(task_id, parameters)]


def _enumeration(names: Sequence[str]) -> str:
    """Return 'a, b and c'."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def _with_region(sentence: str, region: BoxXyxy, image_size_wh: tuple[int, int]) -> Prompt:
    width, height = image_size_wh
    if region[2] > width or region[3] > height:
        allowed = f"in the image: x from 0 to {width}, y from 0 to {height}"
        raise ParameterError("region", f"region must lie {allowed}, not {list(region)}")
    before, after = sentence.split("{region}")
    return join_segments(plain(before), control(box_tokens(region, image_size_wh)), plain(after))
