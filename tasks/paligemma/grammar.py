"""The grammar of PaliGemma's answers: entries joined by ` ; `.

    <locY1><locX1><locY2><locX2> label                                     a box
    <locY1><locX1><locY2><locX2> <seg…> (16 of them) label                 an instance
    <locY1><locX1><locY2><locX2><seg…> (16 of them)                        one without a label

It is written twice, because the two readings differ: `answer_grammar` is what constrained decoding
allows, and `split_entries` reads whatever an unconstrained model wrote. It skips white space
between tokens and leaves incomplete entries to the parser. Source:
google-research/big_vision@5f95305, big_vision/evaluators/proj/paligemma/transfers/segmentation.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.catalog import CatalogEntry
from tasks.parsing import Location, Span, spellings
from tasks.results import BoxXyxy
from tasks.table import SEPARATOR, TaskParameters

# 1024 bins a side, y before x; bin b is at b / 1023. Sources: google-research/big_vision@5f95305,
# big_vision/pp/proj/paligemma/segmentation.py (quantising rounds),
# big_vision/evaluators/proj/paligemma/transfers/segmentation.py (bin / 1023).
NUM_BINS = 1024

# A label and the separator after it are one lexeme: llguidance's lexer is greedy and does not give
# back what it read.
_NAMED = f"""
start: ((head LABEL_AND_SEPARATOR)* head LABEL)?
LABEL_AND_SEPARATOR: LABEL / ?{SEPARATOR} ?/
LABEL: %s"""
_FREE = f"""
start: ((head LABEL_AND_SEPARATOR)* head LABEL?)?
LABEL_AND_SEPARATOR: /[^{SEPARATOR}]*{SEPARATOR} ?/
LABEL: /[^{SEPARATOR}]+/"""
_UNLABELLED = """
start: head?"""
# The pretrained checkpoints write a space before the codes (EXAMPLE_STRING in paligemma_parse.py of
# the Space big-vision/paligemma, whose reader takes any white space); refcoco-seg was trained
# without (refcoco_mask2str in big_vision, pp/proj/paligemma/segmentation.py).
_HEADS = {
    "open_vocabulary_detection": "location{4}",
    "phrase_grounding": "location{4}",
    "instance_segmentation": 'location{4} " "? segmentation{16}',
}

_LOCATION = r"<loc(0[0-9]{3}|10[01][0-9]|102[0-3])>"
_SEGMENTATION = r"<seg(0[0-9]{2}|1[01][0-9]|12[0-7])>"
_LOCATION_TOKEN = re.compile(_LOCATION)
_SEGMENTATION_TOKEN = re.compile(_SEGMENTATION)
_LABEL_END = re.compile(rf"{SEPARATOR}|{_SEGMENTATION}")
_TOKEN = re.compile(f"{_LOCATION}|{_SEGMENTATION}")
_HEAD = re.compile(rf"(?P<locations>(?:{_LOCATION}\s*)+)(?P<codes>(?:{_SEGMENTATION}\s*)*)")


@dataclass(frozen=True, slots=True)
class Entry:
    """Location and segmentation tokens, and the label after them."""

    label: str
    label_spans: tuple[Span, ...]  # empty without a label
    locations: tuple[Location, ...]
    codes: tuple[int, ...]


def asked_names(parameters: TaskParameters) -> tuple[str, ...]:
    single = parameters.phrase or parameters.caption
    return (single,) if single else parameters.labels or parameters.phrases or ()


def answer_grammar(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str | None:
    if task_id not in _HEADS:
        return None
    rules = _FREE
    if not entry.has_labels(task_id):
        rules = _UNLABELLED
    elif entry.forced_names:
        rules = _NAMED % spellings(asked_names(parameters))
    return f"{rules}\nhead: {_HEADS[task_id]}"


def split_entries(text: str) -> Iterator[Entry]:
    """Yield the entries of an answer; text before the first location belongs to none."""
    heads = list(_HEAD.finditer(text))
    starts = [*(head.start() for head in heads), len(text)]
    for head, next_start in zip(heads, starts[1:], strict=True):
        tokens = _LOCATION_TOKEN.finditer(text, *head.span("locations"))
        locations = tuple(Location(int(token[1]), token.span()) for token in tokens)
        codes = tuple(map(int, _SEGMENTATION_TOKEN.findall(head["codes"])))
        written = _LABEL_END.split(text[head.end() : next_start], maxsplit=1)[0]
        label = written.strip()
        label_start = head.end() + len(written) - len(written.lstrip())
        spans = ((label_start, label_start + len(label)),) if label else ()
        yield Entry(label, spans, locations, codes)


def text_without_tokens(text: str) -> str:
    return _TOKEN.sub("", text).strip()


def quantize(position_px: float, side_px: int) -> int:
    """Return the bin nearest to a position on a side of `side_px` pixels."""
    return min(max(round(position_px * (NUM_BINS - 1) / side_px), 0), NUM_BINS - 1)


def dequantize(bin_index: int, side_px: int) -> float:
    return bin_index * side_px / (NUM_BINS - 1)


def location_token(bin_index: int) -> str:
    return f"<loc{bin_index:04d}>"


def box_tokens(box_xyxy: BoxXyxy, image_size_wh: tuple[int, int]) -> str:
    """Return the four location tokens of a box, y1 x1 y2 x2."""
    x1, y1, x2, y2 = box_xyxy
    width, height = image_size_wh
    bins = (quantize(y1, height), quantize(x1, width), quantize(y2, height), quantize(x2, width))
    return "".join(map(location_token, bins))
