"""Kinds of parameters as data: JSON Schema, and the validation of a JSON value.

In strings every run of white space becomes one space (a newline ends PaliGemma's prompt); control
characters are rejected. This module knows neither the tasks nor the size of an image.
"""

import unicodedata
from dataclasses import dataclass

from tasks.errors import ParameterError, shown
from tasks.results import BoxXyxy

MAX_LABELS = 32
MAX_LABEL_CHARS = 200
MAX_TEXT_CHARS = 1000  # a caption or a question
MAX_GIVEN_CHARS = 10_000  # any text, before white space is collapsed to single spaces
MAX_COORDINATE_PX = 1_000_000
SEPARATOR = ";"  # between the names in a PaliGemma prompt: within a name it would split it

JsonSchema = dict[str, object]


@dataclass(frozen=True, slots=True)
class TextParameter:
    """A string."""

    name: str
    description: str
    max_chars: int = MAX_TEXT_CHARS
    is_phrase: bool = False  # names an object: must not contain the separator
    default: None = None

    def json_schema(self) -> JsonSchema:
        return {"description": self.description, **_text_schema(self.max_chars, self.is_phrase)}

    def parse(self, value: object) -> str:
        """Return the normalized string; raise `ParameterError`."""
        return _parse_text(self.name, value, self.max_chars, self.is_phrase)


@dataclass(frozen=True, slots=True)
class TextListParameter:
    """A list of unique object names."""

    name: str
    description: str
    max_items: int = MAX_LABELS
    max_chars: int = MAX_LABEL_CHARS
    default: None = None

    def json_schema(self) -> JsonSchema:
        items = _text_schema(self.max_chars, is_phrase=True)
        limits: JsonSchema = {"minItems": 1, "maxItems": self.max_items, "uniqueItems": True}
        return {"description": self.description, "type": "array", "items": items, **limits}

    def parse(self, value: object) -> tuple[str, ...]:
        """Return the normalized strings; raise `ParameterError`."""
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= self.max_items:
            allowed = f"a list of 1 to {self.max_items} strings"
            raise ParameterError(self.name, f"{self.name} must be {allowed}, not {shown(value)}")
        texts: dict[str, str] = {}  # keyed by the form that must be unique
        for index, item in enumerate(value):
            name = f"{self.name}[{index}]"
            text = _parse_text(name, item, self.max_chars, is_phrase=True, param=self.name)
            if text.casefold() in texts:
                message = f"{self.name} must be unique ignoring case; {text!r} is repeated"
                raise ParameterError(self.name, message)
            texts[text.casefold()] = text
        return tuple(texts.values())


@dataclass(frozen=True, slots=True)
class BoxParameter:
    """A box `[x1, y1, x2, y2]` in pixels of the original image."""

    name: str
    description: str
    default: None = None

    def json_schema(self) -> JsonSchema:
        """Return the JSON Schema of the value; it cannot express x1 < x2 and y1 < y2."""
        number = {"type": "number", "minimum": 0, "maximum": MAX_COORDINATE_PX}
        array: JsonSchema = {"type": "array", "items": number, "minItems": 4, "maxItems": 4}
        return {"description": self.description, **array}

    def parse(self, value: object) -> BoxXyxy:
        """Return the box; raise `ParameterError`. The image's size is not known here."""
        corners = value if isinstance(value, list | tuple) else ()
        numbers = [number for number in corners if isinstance(number, float) or type(number) is int]
        in_range = [0 <= number <= MAX_COORDINATE_PX for number in numbers]  # false for NaN
        if len(corners) != 4 or len(numbers) != 4 or not all(in_range):
            allowed = f"4 numbers [x1, y1, x2, y2] from 0 to {MAX_COORDINATE_PX}"
            raise ParameterError(self.name, f"{self.name} must be {allowed}, not {shown(value)}")
        x1, y1, x2, y2 = map(float, numbers)
        if not (x1 < x2 and y1 < y2):
            message = f"{self.name} must have x1 < x2 and y1 < y2, not {shown(value)}"
            raise ParameterError(self.name, message)
        return (x1, y1, x2, y2)


@dataclass(frozen=True, slots=True)
class ChoiceParameter:
    """One of a closed set of words."""

    name: str
    description: str
    choices: tuple[str, ...]
    default: str

    def json_schema(self) -> JsonSchema:
        choice: JsonSchema = {"type": "string", "enum": list(self.choices), "default": self.default}
        return {"description": self.description, **choice}

    def parse(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.choices:
            allowed = ", ".join(self.choices)
            message = f"{self.name} must be one of {allowed}, not {shown(value)}"
            raise ParameterError(self.name, message)
        return value


Parameter = TextParameter | TextListParameter | BoxParameter | ChoiceParameter


def _text_schema(max_chars: int, is_phrase: bool) -> JsonSchema:
    schema: JsonSchema = {"type": "string", "minLength": 1, "maxLength": max_chars}
    return schema | {"pattern": f"^[^{SEPARATOR}]*$"} if is_phrase else schema


def _parse_text(
    name: str, value: object, max_chars: int, is_phrase: bool, param: str | None = None
) -> str:
    def refuse(allowed: str) -> ParameterError:
        return ParameterError(param or name, f"{name} must be {allowed}, not {shown(value)}")

    if not isinstance(value, str):
        raise refuse("a string")
    if len(value) > MAX_GIVEN_CHARS:
        raise refuse(f"a string of at most {MAX_GIVEN_CHARS} characters, white space included")
    text = " ".join(value.split())
    if not 1 <= len(text) <= max_chars or not any(c.isprintable() for c in text.replace(" ", "")):
        raise refuse(f"a string of 1 to {max_chars} characters, at least one of them visible")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise refuse("a string without control characters and lone surrogates")
    if is_phrase and SEPARATOR in text:
        raise refuse(f"a string without {SEPARATOR!r}, which separates names")
    return text
