"""Answers of models behind an engine as typed results.

A list of objects is read leniently: prose and code fences around it, other keys, and a last object
that is cut are skipped. One pass over the text finds strings, numbers and brackets with their
places, as scores are made of the tokens that wrote them. Without the engine's log-probabilities
scores are None. An answer with a box outside the dialect's frame, or with a fraction of the sides
as a box, has other coordinates than the dialect: none of its boxes is read.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from tasks.openai.prompts import BOX_FORMS, BoxForm, asked_names, dialect_of
from tasks.parsing import AnsweredTask, GeneratedText, Location, Span, resolve_label
from tasks.results import Detection, DetectionsResult, Result, TextResult
from tasks.table import MAX_TEXT_CHARS, TASKS, ResultKind

# An open string ends with the text, so that each character is read once.
_DOUBLE_QUOTED = r'"(?P<string>(?:[^"\\]|\\.?)*+)(?:"|\Z)'
# A quotation mark of prose is followed by another character.
_SINGLE_QUOTED = r"'(?P<quoted>(?:[^'\\]|\\.)*+)'(?=\s*[]},:])"
_OTHERS = r"(?<!\w)(?P<number>-?\d{1,9}(?:\.\d{1,9})?)(?!\w)|[][{}:,]"
_TOKEN = re.compile(f"{_DOUBLE_QUOTED}|{_OTHERS}", re.DOTALL)
_PYTHON_TOKEN = re.compile(f"{_SINGLE_QUOTED}|{_DOUBLE_QUOTED}|{_OTHERS}", re.DOTALL)
_PYTHON_OBJECT = re.compile(r"\{\s*'")
_MAX_OBJECTS = 1000  # suppression compares all pairs
_NOTHING = re.compile(r"\[\s*\]")
_END_OF_THOUGHT = "</think>"


class _TypedResult(TypedDict, total=False):
    text: str
    detections: tuple[Detection, ...]


_TYPED_RESULT = TypeAdapter(_TypedResult)


def parse_answer(task: AnsweredTask, answers: Sequence[GeneratedText]) -> Result:
    form = BOX_FORMS.get(dialect_of(task.entry))
    kind = TASKS[task.task_id].result_kind
    if form is None:
        return _typed_result(answers[0].text, kind, task.image_size_wh)
    if kind == "text":
        return TextResult(answers[0].text.rpartition(_END_OF_THOUGHT)[2].strip(), is_parsed=True)

    written = _detections(task, answers[0], form)
    try:
        detections = tuple(islice(written, _MAX_OBJECTS))
    except ValueError:
        return DetectionsResult((), is_parsed=False)
    is_parsed = bool(detections) or _NOTHING.search(answers[0].text) is not None
    return DetectionsResult(detections, is_parsed)


def _typed_result(text: str, kind: ResultKind, image_size_wh: tuple[int, int]) -> Result:
    """Read the `result` of POST /v1/predict; one with an impossible object is not parsed."""
    try:
        typed = _TYPED_RESULT.validate_json(text)
    except ValidationError:
        typed = {}
    if kind == "text":
        return TextResult(typed.get("text", ""), is_parsed="text" in typed)
    written = typed.get("detections", ())[:_MAX_OBJECTS]
    detections = tuple(item for item in written if _is_possible(item, image_size_wh))
    is_parsed = "detections" in typed and len(detections) == len(written)
    return DetectionsResult(detections, is_parsed)


def _is_possible(item: Detection, image_size_wh: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = item.box
    width, height = image_size_wh
    is_within = 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    return is_within and 0 <= item.rank <= 1


def _detections(task: AnsweredTask, answer: GeneratedText, form: BoxForm) -> Iterator[Detection]:
    """Yield the boxes; raise ValueError if they contradict the dialect."""
    for item in written_objects(answer.text, form.key):
        label = resolve_label(item.label, asked_names(task.parameters))
        for start in range(0, len(item.coordinates) - 3, 4):
            corners = item.coordinates[start : start + 4]
            numbers = [value for value, _ in corners]
            has_point = any("." in answer.text[slice(*span)] for _, span in corners)
            if has_point and max(numbers) <= 1:
                raise ValueError(f"{numbers} are fractions of the sides")
            box = form.box_xyxy(numbers, task.image_size_wh)
            if box is None:
                continue
            locations = [Location(0, span) for _, span in corners]
            score = answer.score([item.label_span], [locations]) if answer.logprobs else None
            yield Detection(box, label, score)


@dataclass(slots=True)
class WrittenObject:
    """A JSON object with coordinates: the numbers, the label, and their places in the text."""

    coordinates: list[tuple[float, Span]] = field(default_factory=list)
    label: str = ""
    label_span: Span = (0, 0)


def written_objects(text: str, box_key: str) -> Iterator[WrittenObject]:
    """Yield the complete objects of a text that have coordinates under `box_key`.

    The label is the value of `label`, or else the first string, also of an object within.
    """
    opened = [WrittenObject()]
    key = ""  # of the value that is read
    string = ""  # the last one, a key if a colon follows
    num_brackets = 0
    # a thought may have boxes, and prose a lone quotation mark
    start = text.find("{", max(0, text.rfind(_END_OF_THOUGHT)))
    token_form = _PYTHON_TOKEN if _PYTHON_OBJECT.match(text, max(start, 0)) else _TOKEN
    for token in token_form.finditer(text, start) if start >= 0 else ():
        item = opened[-1]
        match token[0]:
            case "{":
                opened.append(WrittenObject())
                key = ""
                num_brackets = 0
            case "}" if len(opened) > 1:
                opened.pop()
                if item.coordinates:
                    yield item
                elif not opened[-1].label:
                    opened[-1].label, opened[-1].label_span = item.label, item.label_span
                key = ""
            case "[":
                num_brackets += 1
            case "]":
                num_brackets = max(0, num_brackets - 1)
            case ":":
                key = string
            case "," if num_brackets <= 0:
                key = ""
            case _ if token["number"] and key == box_key:
                item.coordinates.append((float(token[0]), token.span()))
            case _ if token.lastgroup in ("string", "quoted"):
                string = _unescaped(token[token.lastgroup], token.lastgroup == "quoted")
                if key and (key == "label" or not item.label):
                    item.label, item.label_span = string, token.span(token.lastgroup)


def _unescaped(string: str, is_single_quoted: bool) -> str:
    if is_single_quoted:
        string = string.replace("\\'", "'").replace('"', '\\"')
    with suppress(ValueError):
        string = json.loads(f'"{string}"', strict=False)
    string = string.encode(errors="replace").decode()  # no half of a surrogate pair
    return " ".join(string.split())[:MAX_TEXT_CHARS]
