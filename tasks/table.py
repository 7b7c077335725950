"""The task table: every task with its parameters, result kind and the families that support it.

It drives validation, JSON Schema, documentation, page and metrics. It knows neither prompts nor
the size of an image. In strings every run of white space becomes one space (a newline ends
PaliGemma's prompt); control characters are rejected.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from tasks.errors import ParameterError, shown
from tasks.results import BoxXyxy

Family = Literal["florence2", "paligemma", "openai"]
ResultKind = Literal["text", "detections", "instances", "text_regions"]
FAMILY_NAMES: tuple[Family, ...] = get_args(Family)

# The 34 languages of PaliGemma's task prompts, and English: google-research/big_vision@11eea57
# big_vision/configs/proj/paligemma/transfers/coco35l.py (LANGUAGES).
_CODES = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te th"
    " tr uk vi zh"
)
LANGUAGES = tuple(_CODES.split())

MAX_LABELS = 32
MAX_LABEL_CHARS = 200
MAX_TEXT_CHARS = 1000  # a caption or a question
MAX_GIVEN_CHARS = 10_000  # any text, before white space is collapsed to single spaces
MAX_COORDINATE_PX = 1_000_000
SEPARATOR = ";"  # between the names in a PaliGemma prompt: within a name it would split it

JsonSchema = dict[str, object]

_NAME: JsonSchema = {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_CHARS}
_NAME["pattern"] = f"^[^{SEPARATOR}]*$"
_NAMES: JsonSchema = {"type": "array", "minItems": 1, "maxItems": MAX_LABELS, "items": _NAME}
_NAMES["uniqueItems"] = True
_TEXT: JsonSchema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARS}
_NUMBER: JsonSchema = {"type": "number", "minimum": 0, "maximum": MAX_COORDINATE_PX}
_BOX: JsonSchema = {"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of tasks: a text, names of objects, a box or one of some words."""

    name: str
    description: str
    schema: JsonSchema  # one of those above; a box has x1 < x2 and y1 < y2, too
    choices: tuple[str, ...] = ()
    default: str | None = None  # of a choice

    def json_schema(self) -> JsonSchema:
        schema = {"description": self.description, **self.schema}
        return (
            schema | {"enum": [*self.choices], "default": self.default} if self.choices else schema
        )

    @property
    def is_text(self) -> bool:
        return self.schema in (_TEXT, _NAME, _NAMES)

    @property
    def is_list(self) -> bool:
        return self.schema is _NAMES

    def parse(self, value: object) -> str | tuple[str, ...] | BoxXyxy:
        """Return the typed value; raise `ParameterError`. The image's size is not known here."""
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise _refusal(self.name, f"one of {', '.join(self.choices)}", value)
            return value
        if self.schema is _NAMES:
            return _parse_names(self.name, value)
        if self.schema is _BOX:
            return _parse_box(self.name, value)
        return _parse_text(self.name, value, is_name=self.schema is _NAME)


def _refusal(name: str, allowed: str, value: object) -> ParameterError:
    """Return the error of a parameter, or of an item of it such as `labels[1]`."""
    return ParameterError(name.partition("[")[0], f"{name} must be {allowed}, not {shown(value)}")


def _parse_names(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_LABELS:
        raise _refusal(name, f"a list of 1 to {MAX_LABELS} strings", value)
    texts: dict[str, str] = {}  # keyed by the form that must be unique
    for index, item in enumerate(value):
        text = _parse_text(f"{name}[{index}]", item, is_name=True)
        if text.casefold() in texts:
            raise ParameterError(name, f"{name} must be unique ignoring case; {text!r} is repeated")
        texts[text.casefold()] = text
    return tuple(texts.values())


def _parse_box(name: str, value: object) -> BoxXyxy:
    corners = value if isinstance(value, list | tuple) else ()
    numbers = [number for number in corners if isinstance(number, float) or type(number) is int]
    in_range = [0 <= number <= MAX_COORDINATE_PX for number in numbers]  # false for NaN
    if len(corners) != 4 or len(numbers) != 4 or not all(in_range):
        raise _refusal(name, f"4 numbers [x1, y1, x2, y2] from 0 to {MAX_COORDINATE_PX}", value)
    x1, y1, x2, y2 = map(float, numbers)
    if not (x1 < x2 and y1 < y2):
        raise _refusal(name, "a box with x1 < x2 and y1 < y2", value)
    return (x1, y1, x2, y2)


def _parse_text(name: str, value: object, is_name: bool) -> str:
    max_chars = MAX_LABEL_CHARS if is_name else MAX_TEXT_CHARS
    if not isinstance(value, str):
        raise _refusal(name, "a string", value)
    if len(value) > MAX_GIVEN_CHARS:
        allowed = f"a string of at most {MAX_GIVEN_CHARS} characters, white space included"
        raise _refusal(name, allowed, value)
    text = " ".join(value.split())
    if not 1 <= len(text) <= max_chars or not any(c.isprintable() for c in text.replace(" ", "")):
        allowed = f"a string of 1 to {max_chars} characters, at least one of them visible"
        raise _refusal(name, allowed, value)
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise _refusal(name, "a string without control characters and lone surrogates", value)
    if is_name and SEPARATOR in text:
        raise _refusal(name, f"a string without {SEPARATOR!r}, which separates names", value)
    return text


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
        required: list[str] = []
        for parameter in self.parameters:
            if parameter.default is None and parameter.name not in self.exactly_one_of:
                required.append(parameter.name)
        object.__setattr__(self, "required", tuple(required))

    def json_schema(self) -> JsonSchema:
        schema: JsonSchema = {
            "type": "object",
            "properties": {param.name: param.json_schema() for param in self.parameters},
            "required": list(self.required),
            "additionalProperties": False,
        }
        if self.exactly_one_of:
            schema["oneOf"] = [{"required": [name]} for name in self.exactly_one_of]
        return schema


_ALL: frozenset[Family] = frozenset(FAMILY_NAMES)
_FLORENCE2: frozenset[Family] = frozenset({"florence2"})
_BOTH: frozenset[Family] = frozenset({"florence2", "paligemma"})
_NO_PALIGEMMA: frozenset[Family] = frozenset({"florence2", "openai"})
_NO_FLORENCE2: frozenset[Family] = frozenset({"paligemma", "openai"})

_WORD: JsonSchema = {"type": "string"}
_LANGUAGE = Parameter("language", "Language code of the answer.", _WORD, LANGUAGES, "en")
_REGION = Parameter("region", "Box [x1, y1, x2, y2] in pixels of the image.", _BOX)
_DETAILS = ("short", "detailed", "paragraph")
_CAPTION_DETAIL = Parameter("detail", "Level of detail of the caption.", _WORD, _DETAILS, "short")
_READINGS = ("category", "description", "text")
_REGION_DETAIL = Parameter(
    "detail", "What to return about the region.", _WORD, _READINGS, "description"
)
_LABELS = Parameter("labels", "Names of the objects to detect.", _NAMES)
_CAPTION = Parameter("caption", "A sentence whose phrases are located.", _TEXT)
_PHRASES = Parameter("phrases", "The phrases to locate.", _NAMES)
_PHRASE = Parameter("phrase", "Phrase that names what to segment.", _NAME)
_QUESTION = Parameter("question", "The question.", _TEXT)

_ROWS = (
    Task("captioning", "Describe the image.", "text", _ALL, (_CAPTION_DETAIL, _LANGUAGE)),
    Task("object_detection", "Detect objects and name each one.", "detections", _NO_PALIGEMMA),
    Task(
        "open_vocabulary_detection",
        "Detect the objects named by the labels.",
        "detections",
        _ALL,
        (_LABELS,),
    ),
    Task(
        "phrase_grounding",
        "Locate what each phrase refers to.",
        "detections",
        _ALL,
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
    Task("ocr", "Read the text.", "text", _ALL),
    Task("ocr_with_regions", "Read the text and locate each piece.", "text_regions", _FLORENCE2),
    Task("region_description", "Describe a region.", "text", _FLORENCE2, (_REGION, _REGION_DETAIL)),
    Task(
        "visual_question_answering",
        "Answer a question about the image.",
        "text",
        _NO_FLORENCE2,
        (_QUESTION, _LANGUAGE),
    ),
)

TASKS: dict[str, Task] = {task.id: task for task in _ROWS}


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """The validated parameters of one request; those not given are None."""

    labels: tuple[str, ...] | None = None
    caption: str | None = None
    phrases: tuple[str, ...] | None = None
    phrase: str | None = None
    region: BoxXyxy | None = None
    detail: str | None = None
    language: str | None = None
    question: str | None = None


def parse_parameters(task: Task, values: Mapping[str, object]) -> TaskParameters:
    """Validate JSON values and return the typed parameters; raise `ParameterError`."""
    by_name = {parameter.name: parameter for parameter in task.parameters}
    for name in values:
        if name not in by_name:
            allowed = f"allowed are {', '.join(by_name)}" if by_name else "it has no parameters"
            raise ParameterError(name, f"{name} is not a parameter of {task.id}; {allowed}")
    if task.exactly_one_of:
        present = [name for name in task.exactly_one_of if name in values]
        if len(present) != 1:
            param = present[-1] if present else task.exactly_one_of[0]
            allowed = ", ".join(task.exactly_one_of)
            got = " and ".join(present) or "none"
            raise ParameterError(param, f"{task.id} requires exactly one of {allowed}; got {got}")
    for name in task.required:
        if name not in values:
            raise ParameterError(name, f"{task.id} requires {name}: {by_name[name].description}")
    parsed = {n: p.parse(values[n]) if n in values else p.default for n, p in by_name.items()}
    return TaskParameters(**parsed)  # type: ignore[arg-type]  # each name has the type of its kind
