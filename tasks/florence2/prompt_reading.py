"""Florence-2's task tokens, as users of its processor write them, to tasks and parameters.

`<OD>`, `<CAPTION_TO_PHRASE_GROUNDING>a red circle`, `<REGION_TO_OCR><loc_52><loc_332><loc_932><loc_774>`

Source: transformers, models/florence2/processing_florence2.py (task_prompts_without_inputs, task_prompts_with_input).
"""

import re

from tasks.asked import AskedTask
from tasks.errors import ParameterError
from tasks.florence2.locations import dequantize
from tasks.results import BoxXyxy

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


def read_prompt(text: str) -> AskedTask | None:
    """Return the task that `text` asks for, None if it begins with no task token; raise `ParameterError`."""
    match = _TASK_TOKEN.match(text)
    if match is None:
        return None
    token, rest = match.groups()
    if token in _ALONE:
        if rest.strip():
            raise ParameterError("messages", f"<{token}> stands alone; {rest[:80]!r} follows it")
        return _ALONE[token]
    if token in _WITH_TEXT:
        task_id, name = _WITH_TEXT[token]
        return AskedTask(task_id, {name: [rest] if name == "labels" else rest})
    if token in _WITH_REGION:
        task_id, values = _WITH_REGION[token]
        return AskedTask(task_id, values, _region_shares(token, rest))
    tokens = ", ".join(f"<{each}>" for each in (*_ALONE, *_WITH_TEXT, *_WITH_REGION))
    raise ParameterError("messages", f"<{token[:80]}> is no task token; there are {tokens}")


def _region_shares(token: str, text: str) -> BoxXyxy:
    match = _REGION.fullmatch(text)
    if match is None:
        message = f"<{token}> needs a region, <loc_x1><loc_y1><loc_x2><loc_y2> of 0 to 999, not {text[:80]!r}"
        raise ParameterError("messages", message)
    x1, y1, x2, y2 = (dequantize(int(bin_index), 1) for bin_index in match.groups())
    return (x1, y1, x2, y2)
