"""The grammar of Florence-2's answers: phrases, each a label and the location tokens after it.

    label<loc_x1><loc_y1><loc_x2><loc_y2>…        a label and one or more boxes
    text<loc_x1><loc_y1>…<loc_x4><loc_y4>         a text and its quad
    <loc_x1><loc_y1>…<sep><loc_x1><loc_y1>…       an instance of several polygons
    <poly>…</poly><poly>…</poly>                  several instances

White space between tokens is skipped. What is incomplete is for the parser to leave out.
Source: transformers, models/florence2/processing_florence2.py (Florence2PostProcessor).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasks.generation import Span
from tasks.locations import Location, Locations

_LOCATION = r"<loc_(?P<bin>0|[1-9][0-9]{0,2})>"
# Other control tokens of the released tokenizers; most of them never occur in an answer.
_OTHER = r"</?(?:poly|od|ocr|n?cap|dcap|ground(?:ing)?|obj|seg|region_cap|region_to_desciption|proposal)>|<and>"
_TOKEN = re.compile(f"{_LOCATION}|(?P<separator><sep>)|{_OTHER}")

Instance = tuple[Locations, ...]  # the locations of one instance, parted at `<sep>`


@dataclass(frozen=True, slots=True)
class Phrase:
    """A label and what is located by it."""

    label: str
    label_spans: tuple[Span, ...]  # empty without a label
    instances: tuple[Instance, ...]


def split_phrases(text: str) -> Iterator[Phrase]:
    """Yield the phrases that have a location; the first is without a label where the answer starts with a token."""
    label, position = "", 0
    spans: tuple[Span, ...] = ()
    tokens: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        written = text[position : token.start()]
        if written.strip():
            yield from _phrase(label, spans, tokens)
            start = token.start() - len(written.lstrip())
            label, tokens = written.strip(), []
            spans = ((start, start + len(label)),)
        tokens.append(token)
        position = token.end()
    yield from _phrase(label, spans, tokens)


def text_before_tokens(text: str) -> str:
    """Return what is written before the first control token."""
    token = _TOKEN.search(text)
    return text[: token.start()].strip() if token else text.strip()


def text_without_tokens(text: str) -> str:
    """Return `text` without control tokens."""
    return _TOKEN.sub("", text).strip()


def _phrase(label: str, spans: tuple[Span, ...], tokens: Iterable[re.Match[str]]) -> Iterator[Phrase]:
    instances: list[list[list[Location]]] = [[[]]]
    for token in tokens:
        if token["bin"]:
            instances[-1][-1].append(Location(int(token["bin"]), token.span()))
        elif token["separator"]:
            instances[-1].append([])
        else:
            instances.append([[]])
    located = [tuple(tuple(run) for run in instance if run) for instance in instances]
    if found := tuple(instance for instance in located if instance):
        yield Phrase(label, spans, found)
