"""The grammar of Florence-2's answers: phrases, each a label followed by location tokens.

    label<loc_x1><loc_y1><loc_x2><loc_y2>…        a label and one or more boxes
    text<loc_x1><loc_y1>…<loc_x4><loc_y4>         a text and its quad
    <loc_x1><loc_y1>…<sep><loc_x1><loc_y1>…       an instance of several polygons
    <poly>…</poly><poly>…</poly>                  several instances

It is written twice, because the two readings differ: `answer_grammar` is what constrained decoding
allows, and `split_phrases` reads whatever an unconstrained model wrote. It skips white space
between tokens and leaves incomplete phrases to the parser. Source: transformers,
models/florence2/processing_florence2.py (Florence2PostProcessor).
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tasks.catalog import CatalogEntry
from tasks.parsing import Location, Locations, Span, spellings
from tasks.results import BoxXyxy, Ring
from tasks.table import TaskParameters

# 1000 bins a side, x before y; a bin is decoded to its centre. Source: transformers,
# models/florence2/processing_florence2.py (quantize, dequantize).
NUM_BINS = 1000

_LABELLED_BOXES = "(TEXT boxes)*"
_ANSWERS = {
    "object_detection": _LABELLED_BOXES,
    "open_vocabulary_detection": "(TEXT (boxes | marked_instances))*",
    "phrase_grounding": _LABELLED_BOXES,
    "region_proposal": "boxes?",
    "dense_region_captioning": _LABELLED_BOXES,
    "instance_segmentation": "(TEXT? (instance | marked_instances))?",
    "ocr_with_regions": "(TEXT location{8})*",
    "region_description": "TEXT? boxes?",
}
_ANY_TEXT = "/(?s:.)+/"
# Florence-2-large repeats the start token before an answer that has locations.
_GRAMMAR = """
start: <s>* answer
answer: %s
TEXT: %s
boxes: (location{4})+
polygon: (location{2}){3,}
instance: polygon (<sep> polygon)*
marked_instances: (<poly> instance </poly>)+
"""

_LOCATION = r"<loc_(?P<bin>0|[1-9][0-9]{0,2})>"
# Other control tokens of the released tokenizers; most of them never occur in an answer.
_OTHER = (
    r"</?(?:poly|od|ocr|n?cap|dcap|ground(?:ing)?|obj|seg|region_cap|region_to_desciption|proposal)>"
    r"|<and>"
)
_TOKEN = re.compile(f"{_LOCATION}|(?P<separator><sep>)|{_OTHER}")


@dataclass(frozen=True, slots=True)
class Instance:
    """The locations of one instance, split at `<sep>`."""

    runs: tuple[Locations, ...]
    is_outline: bool  # after `<poly>`


@dataclass(frozen=True, slots=True)
class Phrase:
    """A label and the instances located after it."""

    label: str
    label_spans: tuple[Span, ...]  # empty without a label
    instances: tuple[Instance, ...]


def answer_grammar(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str | None:
    """Return the grammar of an answer; labels are names of the request if the entry forces them."""
    names = None if task_id == "instance_segmentation" else parameters.labels or parameters.phrases
    answer = _ANSWERS.get("open_vocabulary_detection" if names else task_id)
    label = spellings(names) if names and entry.forced_names else _ANY_TEXT
    return answer and _GRAMMAR % (answer, label)


def split_phrases(text: str) -> Iterator[Phrase]:
    """Yield the phrases with a location, the first without a label if a token starts the answer."""
    label = ""
    position = 0
    spans: tuple[Span, ...] = ()
    tokens: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        written = text[position : token.start()]
        if written.strip():
            yield from _phrase(label, spans, tokens)
            start = token.start() - len(written.lstrip())
            label = written.strip()
            tokens = []
            spans = ((start, start + len(label)),)
        tokens.append(token)
        position = token.end()
    yield from _phrase(label, spans, tokens)


def text_before_tokens(text: str) -> str:
    token = _TOKEN.search(text)
    return text[: token.start()].strip() if token else text.strip()


def text_without_tokens(text: str) -> str:
    return _TOKEN.sub("", text).strip()


def _phrase(
    label: str, spans: tuple[Span, ...], tokens: Iterable[re.Match[str]]
) -> Iterator[Phrase]:
    instances: list[Instance] = []
    runs: list[list[Location]] = [[]]
    is_outline = False
    for token in tokens:
        if token["bin"]:
            runs[-1].append(Location(int(token["bin"]), token.span()))
        elif token["separator"]:
            runs.append([])
        else:
            instances.append(Instance(tuple(map(tuple, filter(None, runs))), is_outline))
            runs = [[]]
            is_outline = token[0] == "<poly>"
    instances.append(Instance(tuple(map(tuple, filter(None, runs))), is_outline))
    if located := tuple(instance for instance in instances if instance.runs):
        yield Phrase(label, spans, located)


def quantize(position_px: float, side_px: int) -> int:
    return min(max(math.floor(position_px * NUM_BINS / side_px), 0), NUM_BINS - 1)


def dequantize(locations: Locations, image_size_wh: tuple[int, int]) -> Ring:
    """Return the points, an x and a y of each, at the centres of their bins in pixels."""
    width, height = image_size_wh
    xs = [(location.bin_index + 0.5) * width / NUM_BINS for location in locations[0::2]]
    ys = [(location.bin_index + 0.5) * height / NUM_BINS for location in locations[1::2]]
    return tuple(zip(xs, ys, strict=True))


def location_token(bin_index: int) -> str:
    return f"<loc_{bin_index}>"


def box_tokens(box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]) -> str:
    return "".join(
        location_token(quantize(p, s)) for p, s in zip(box_xyxy, image_size_wh * 2, strict=True)
    )
