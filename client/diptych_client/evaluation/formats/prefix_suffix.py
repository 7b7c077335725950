"""Prefix and suffix: the JSON lines that trainers of PaliGemma and of Florence-2 read.

    {"image": "a.png", "prefix": "detect cat ; dog", "suffix": "<loc0256>… (4) cat ; <loc…"}
    {"image": "a.png", "prefix": "<OD>", "suffix": "cat<loc_52>… (4)dog<loc_…"}

A prefix that is no word or token of theirs is a question. Codes of masks are not read. Sources:
google-research/big_vision, big_vision/configs/proj/paligemma and
big_vision/pp/proj/paligemma/segmentation.py; transformers, processing_florence2.py.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych_client.evaluation.dataset import true_box, upright_size
from diptych_client.evaluation.formats.export import Export
from diptych_client.evaluation.questions import QUESTIONS, Record
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import Problems
from diptych_client.long_runs import RunError
from diptych_client.results import Item, TextResult, box_of, category_of

_PREFIX = re.compile(
    r"(?:<([A-Z_]+)>|(detect|segment|caption|cap|describe|ocr|answer)\b)\s*(.*)", re.DOTALL
)
_LANGUAGE = re.compile(r"[a-z]{2} (?=.)")  # before a question
_LOCATION = re.compile(r"<loc_?(\d{1,4})>")
_TEXTS = dict.fromkeys(("caption", "cap", "describe", "CAPTION"), "caption")
_TEXTS |= dict.fromkeys(("DETAILED_CAPTION", "MORE_DETAILED_CAPTION"), "caption")
_TEXTS |= {"ocr": "text", "OCR": "text"}
_OBJECTS = ("detect", "OD", "REGION_PROPOSAL", "DENSE_REGION_CAPTION")
_PHRASES = ("segment", "OPEN_VOCABULARY_DETECTION", "CAPTION_TO_PHRASE_GROUNDING")
_TOKENS = {
    "captioning": "<CAPTION>",
    "object_detection": "<OD>",
    "open_vocabulary_detection": "<OD>",
    "region_proposal": "<REGION_PROPOSAL>",
    "dense_region_captioning": "<DENSE_REGION_CAPTION>",
    "phrase_grounding": "<CAPTION_TO_PHRASE_GROUNDING>",
    "ocr": "<OCR>",
    "region_description": "<REGION_TO_DESCRIPTION>",
    QUESTIONS: "<VQA>",
}

SizeWh = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Codec:
    """The boxes of a family: bin b of the axis is at (b + offset) / scale of the side."""

    objects: re.Pattern[str]
    token: str
    scale: int
    offset: float
    axes: tuple[int, int, int, int]  # positions in [x1, y1, x2, y2]

    def box(self, bins: list[int], size_wh: SizeWh) -> BoxXyxy:
        edges = [0.0] * 4
        for axis, index in zip(self.axes, bins, strict=True):
            edges[axis] = (index + self.offset) / self.scale * size_wh[axis % 2]
        return true_box(edges)

    def tokens(self, box: BoxXyxy, size_wh: SizeWh) -> str:
        text = ""
        for axis in self.axes:
            place = box[axis] * self.scale / size_wh[axis % 2]
            index = math.floor(place) if self.offset else round(place)
            text += self.token.format(min(max(index, 0), int(self.scale - self.offset)))
        return text


_PALIGEMMA_OBJECT = r"((?:<loc\d{4}>\s*){4})(?P<codes>(?:<seg\d{3}>\s*)*)(?P<name>[^;<]*)"
# a name begins after a location: one that may begin anywhere takes quadratic time
_FLORENCE2_OBJECTS = r"(?:^|(?<=>))(?P<name>[^<>]*)(?:<loc_\d{1,3}>)+(?P<codes>)"
PALIGEMMA = Codec(re.compile(_PALIGEMMA_OBJECT), "<loc{:04d}>", 1023, 0.0, (1, 0, 3, 2))
FLORENCE2 = Codec(re.compile(_FLORENCE2_OBJECTS), "<loc_{}>", 1000, 0.5, (0, 1, 2, 3))


def prefix_suffix_row(
    row: Mapping[str, Any], image: Path, problems: Problems, place: str
) -> dict[str, Any]:
    """Return prefix and suffix as other fields of JSON lines."""
    prefix = str(row["prefix"]).removeprefix("<image>").strip()
    suffix = str(row["suffix"])
    size_wh = upright_size(image) if "<loc" in prefix + suffix else (1, 1)
    match = _PREFIX.fullmatch(prefix)
    token, word, rest = match.groups() if match else (None, None, prefix)
    codec = PALIGEMMA if token is None else FLORENCE2
    name = token or word or ""
    if name in _OBJECTS:
        boxes = _boxes(codec, suffix, size_wh, problems, place)
        return {"objects": [{"label": label, "box": box} for label, box in boxes]}
    if name in _PHRASES:
        boxes = _boxes(codec, suffix, size_wh, problems, place)
        return {"phrases": [{"phrase": label, "box": box} for label, box in boxes]}
    bins = list(map(int, _LOCATION.findall(rest)))
    if len(bins) == 4:
        text = _LOCATION.sub("", suffix).strip()  # Florence-2 repeats the region
        return {"text": text, "region": codec.box(bins, size_wh)}
    if name in _TEXTS:
        return {_TEXTS[name]: suffix}
    question = rest if token == "VQA" else prefix
    if word == "answer":
        question = _LANGUAGE.sub("", rest, count=1)
    return {"question": question, "answer": suffix}


def _boxes(
    codec: Codec, suffix: str, size_wh: SizeWh, problems: Problems, place: str
) -> Iterator[tuple[str, BoxXyxy]]:
    """Yield labels and boxes; a remainder of locations is a problem."""
    for match in codec.objects.finditer(suffix):
        bins = list(map(int, _LOCATION.findall(match[0])))
        for start in range(0, len(bins), 4):
            with problems.leaving_out("object", place):
                box = codec.box(bins[start : start + 4], size_wh)
                yield match["name"].strip() or "object", box
        if match["codes"]:
            problems.count("mask left out")
    remainder = codec.objects.sub("", suffix)
    if "<loc" in remainder:
        finding = f"locations that are not a box: {remainder[:80]!r}"
        problems.add(place, finding, "object left out")


def write_paligemma(export: Export) -> Path:
    parameters = export.job.parameters
    language = parameters.language or "en"
    word = "describe" if parameters.detail == "detailed" else "caption"
    prefixes = {
        "captioning": f"{word} {language}",
        "ocr": "ocr",
        "region_description": "caption ",
        QUESTIONS: f"answer {language} {parameters.question}",
    }
    detect = f"detect {' ; '.join(export.classes or ['object'])}"
    prefix = prefixes.get(export.job.task, detect)
    return _write(export, PALIGEMMA, prefix, " ; ", "{box} {label}".format)


def write_florence2(export: Export) -> Path:
    job = export.job
    prefix = _TOKENS[job.task]
    if job.parameters.detail == "detailed":
        prefix = "<DETAILED_CAPTION>"
    elif job.parameters.detail == "paragraph":
        prefix = "<MORE_DETAILED_CAPTION>"
    if job.task == "phrase_grounding":
        prefix += job.parameters.caption or ", ".join(export.classes)
    prefix += job.parameters.question or ""
    form = "{box}" if job.task == "region_proposal" else "{label}{box}"
    return _write(export, FLORENCE2, prefix, "", form.format)


def _write(
    export: Export, codec: Codec, prefix: str, separator: str, form: Callable[..., str]
) -> Path:
    """Write the rows of each split; objects from left to right, an order that can be learnt."""
    for label in export.classes:
        if not {";", "<", ">"}.isdisjoint(label):
            rule = "prefix and suffix cannot hold a label with ; < or >"
            raise RunError(f"{rule}, got {label!r:.200}: choose another --format")
    region = export.job.parameters.region

    def line(record: Record) -> str:
        size_wh = (record.answer.image.width, record.answer.image.height)
        objects = []
        for item in sorted(record.items, key=_center):
            box = codec.tokens(box_of(item), size_wh)
            objects.append(form(label=category_of(item), box=box))
        result = record.answer.result
        suffix = result.text if isinstance(result, TextResult) else separator.join(objects)
        row = {
            "image": record.image.name,
            "prefix": prefix + (codec.tokens(region, size_wh) if region else ""),
            "suffix": suffix,
        }
        return json.dumps(row, ensure_ascii=False) + "\n"

    def lines(records: Sequence[Record]) -> str:
        return "".join(map(line, records))

    return export.write_splits("{split}", "labels.jsonl", lines)


def _center(item: Item) -> float:
    return box_of(item)[0] + box_of(item)[2]
