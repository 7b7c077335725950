"""PaliGemma's prompts, as users of its processor write them, to tasks and parameters.

`caption en`, `describe en`, `ocr`, `detect red circle ; star`, `segment star`, `answer en what color is the star?`

Source: the model cards of google/paligemma-3b-mix-224 and google/paligemma2-3b-pt-224.
"""

import re

from tasks.asked import AskedTask
from tasks.parameter_kinds import SEPARATOR

_WORD = re.compile(r"\s*(caption|describe|ocr|detect|segment|answer)\b\s*(.*?)\s*", re.DOTALL)
_DETAILS = {"caption": "short", "describe": "detailed"}


def read_prompt(text: str) -> AskedTask | None:
    """Return the task that `text` asks for, None if it has the form of none."""
    match = _WORD.fullmatch(text)
    if match is None:
        return None
    word, rest = match.groups()
    match word:
        case "ocr" if not rest:
            return AskedTask("ocr")
        case "caption" | "describe" if len(rest.split()) == 1:
            return AskedTask("captioning", {"detail": _DETAILS[word], "language": rest})
        case "detect" if rest:
            return AskedTask("open_vocabulary_detection", {"labels": [name.strip() for name in rest.split(SEPARATOR)]})
        case "segment" if rest:
            return AskedTask("instance_segmentation", {"phrase": rest})
        case "answer" if len(rest.split(maxsplit=1)) == 2:
            language, question = rest.split(maxsplit=1)
            return AskedTask("visual_question_answering", {"question": question, "language": language})
    return None
