"""The task table: every task with its parameters, result kind and the families that support it.

It drives validation, JSON Schema, documentation, page and metrics. It knows no prompts.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from tasks.parameter_kinds import (
    MAX_LABEL_CHARS,
    BoxParameter,
    ChoiceParameter,
    JsonSchema,
    Parameter,
    TextListParameter,
    TextParameter,
)

Family = Literal["florence2", "paligemma"]
ResultKind = Literal["text", "detections", "instances", "text_regions"]
FAMILY_NAMES: tuple[Family, ...] = get_args(Family)

# The 34 languages of PaliGemma's task prompts, and English: google-research/big_vision@11eea57
# big_vision/configs/proj/paligemma/transfers/coco35l.py (LANGUAGES).
_CODES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te th"
    " tr uk vi zh"
)
LANGUAGES = tuple(_CODES.split())


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the table."""

    id: str
    description: str
    result_kind: ResultKind
    families: frozenset[Family]  # support it without a template in the catalog entry
    parameters: tuple[Parameter, ...] = ()
    exactly_one_of: tuple[str, ...] = ()  # parameters of which a request must have one
    required: tuple[str, ...] = field(init=False)  # parameters that every request must have

    def __post_init__(self) -> None:
        needed = [parameter.name for parameter in self.parameters if parameter.default is None]
        required = tuple(name for name in needed if name not in self.exactly_one_of)
        object.__setattr__(self, "required", required)

    def json_schema(self) -> JsonSchema:
        schema: JsonSchema = {
            "type": "object",
            "properties": {
                parameter.name: parameter.json_schema() for parameter in self.parameters
            },
            "required": list(self.required),
            "additionalProperties": False,
        }
        if self.exactly_one_of:
            schema["oneOf"] = [{"required": [name]} for name in self.exactly_one_of]
        return schema


_BOTH: frozenset[Family] = frozenset(FAMILY_NAMES)
_FLORENCE2: frozenset[Family] = frozenset({"florence2"})
_PALIGEMMA: frozenset[Family] = frozenset({"paligemma"})

_LANGUAGE = ChoiceParameter("language", "Language code of the answer.", LANGUAGES, "en")
_REGION = BoxParameter("region", "Box [x1, y1, x2, y2] in pixels of the image.")
_CAPTION_DETAIL = ChoiceParameter(
    "detail", "Level of detail of the caption.", ("short", "detailed", "paragraph"), "short"
)
_REGION_DETAIL = ChoiceParameter(
    "detail", "What to return about the region.", ("category", "description", "text"), "description"
)

_LABELS = TextListParameter("labels", "Names of the objects to detect.")
_CAPTION = TextParameter("caption", "A sentence whose phrases are located.")
_PHRASES = TextListParameter("phrases", "The phrases to locate.")
_PHRASE = TextParameter("phrase", "Phrase that names what to segment.", MAX_LABEL_CHARS, True)
_QUESTION = TextParameter("question", "The question.")

_ROWS = (
    Task("captioning", "Describe the image.", "text", _BOTH, (_CAPTION_DETAIL, _LANGUAGE)),
    Task("object_detection", "Detect objects and name each one.", "detections", _FLORENCE2),
    Task(
        "open_vocabulary_detection",
        "Detect the objects named by the labels.",
        "detections",
        _BOTH,
        (_LABELS,),
    ),
    Task(
        "phrase_grounding",
        "Locate what each phrase refers to.",
        "detections",
        _BOTH,
        (_CAPTION, _PHRASES),
        exactly_one_of=("caption", "phrases"),
    ),
    Task(
        "region_proposal",
        "Propose regions that contain an object, without labels.",
        "detections",
        _FLORENCE2,
    ),
    Task(
        "dense_region_captioning", "Detect regions and caption each one.", "detections", _FLORENCE2
    ),
    Task(
        "instance_segmentation",
        "Segment what each phrase refers to, or the object in the region.",
        "instances",
        _BOTH,
        (_PHRASE, _PHRASES, _REGION),
        exactly_one_of=("phrase", "phrases", "region"),
    ),
    Task("ocr", "Read the text.", "text", _BOTH),
    Task("ocr_with_regions", "Read the text and locate each piece.", "text_regions", _FLORENCE2),
    Task("region_description", "Describe a region.", "text", _FLORENCE2, (_REGION, _REGION_DETAIL)),
    Task(
        "visual_question_answering",
        "Answer a question about the image.",
        "text",
        _PALIGEMMA,
        (_QUESTION, _LANGUAGE),
    ),
)

TASKS: dict[str, Task] = {task.id: task for task in _ROWS}
