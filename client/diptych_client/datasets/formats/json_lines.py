"""JSON lines, one row for each image, or for each of its labels; docs/evaluation.md has the fields.

metadata.jsonl of an ImageFolder has others (huggingface.co/docs/datasets, "Create an image
dataset"), and so have prefix and suffix, which trainers of PaliGemma and of Florence-2 read:

    {"file_name": "a.png", "text": "two cats"}
    {"file_name": "a.png", "objects": {"bbox": [[x, y, width, height]], "categories": ["cat"]}}
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

from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    Selection,
    TrueObject,
    TruePhrase,
    TrueQuestion,
    class_name,
    merged,
    read_lines,
    true_box,
    upright_size,
)
from diptych_client.datasets.formats.export import Export
from diptych_client.datasets.inputs import ImageFile, Problems
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import QUESTIONS, Record
from diptych_client.geometry import BoxXyxy
from diptych_client.json_values import to_json
from diptych_client.results import Item, TextResult

_CATEGORIES = ("category", "categories", "label")  # names of the column
_LABELS = {"objects", "captions", "caption", "text", "region", "phrases", "prefix", "suffix"}
_LABELS |= {"questions", "question", "answers", "answer"}
_OTHERS = {"image", "file_name", "width", "height", "id", "image_id", "question_id", "split"}


def read_json_lines(path: Path, selection: Selection) -> Dataset:
    """Read a file; lines of the same image may repeat, as with several questions."""
    store = selection.store(path.parent)
    rows: list[LabelledImage] = []
    for number, line in read_lines(path):
        expected = "expected an object with `image` and labels"
        place = f"{path}, line {number}"
        with selection.problems.leaving_out("line", f"{place}: {expected}"):
            row = json.loads(line)
            if "file_name" in row:
                row = metadata_row(row) | {"image": row["file_name"]}
            image = store.image(row["image"])
            if "prefix" in row and "suffix" in row:
                row |= prefix_suffix_row(row, store.path / image.name, selection.problems, place)
            rows.append(labelled_image(image, row, selection))
    return Dataset(merged(rows), store)


def metadata_row(row: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a row of Hugging Face's as one of JSON lines; `text` may also be the caption."""
    row = {"captions": row.get("caption", row.get("text")), **row}
    objects = row.get("objects")
    if not isinstance(objects, Mapping):
        return row
    labels = next((objects[name] for name in _CATEGORIES if name in objects), None)
    if labels is None or "bbox" not in objects:
        raise RunError(f"`objects` must have bbox and categories, got {', '.join(objects)}")
    object_rows = []
    for label, (x, y, width, height) in zip(labels, objects["bbox"], strict=True):
        if isinstance(label, int) and class_names:
            label = class_names[label]
        object_rows.append({"label": label, "box": [x, y, x + width, y + height]})
    return {**row, "objects": object_rows}


def labelled_image(image: ImageFile, row: Mapping[str, Any], selection: Selection) -> LabelledImage:
    """Return the labels of a row; other fields than labels and common data are counted."""
    for name in row.keys() - _LABELS - _OTHERS:
        selection.problems.count(f"field {name!s:.40} not read")
    objects = row.get("objects")
    captions = row.get("captions", row.get("caption"))
    text = row.get("text")
    questions = []
    for question in row.get("questions") or ([row] if "question" in row else []):
        answers = question.get("answers", question.get("answer"))
        accepted = () if answers is None else _texts(answers)
        questions.append(TrueQuestion(str(question["question"]), accepted))
    phrases = []
    for phrase in row.get("phrases") or ():
        box = _optional_box(phrase.get("box"))
        phrases.append(TruePhrase(str(phrase["phrase"]), box, phrase.get("segmentation")))
    return LabelledImage(
        image,
        None if objects is None else tuple(map(_object, objects)),
        None if captions is None else _texts(captions),
        None if text is None else str(text),
        _optional_box(row.get("region")),
        tuple(questions),
        tuple(phrases),
    )


def _texts(value: Any) -> tuple[str, ...]:
    """Return one text or several; VQA's own answers are objects."""
    texts = []
    for text in [value] if isinstance(value, str) else value:
        texts.append(str(text["answer"] if isinstance(text, Mapping) else text))
    return tuple(texts)


def _object(row: Mapping[str, Any]) -> TrueObject:
    is_crowd = bool(row.get("iscrowd"))
    label = class_name(row["label"])
    return TrueObject(label, true_box(row["box"]), row.get("segmentation"), is_crowd)


def _optional_box(box: Any) -> BoxXyxy | None:
    return None if box is None else true_box(box)


def write_json_lines(export: Export) -> Path:
    """Write {"image": name, "answer": the JSON of REST}."""
    return export.write_whole("answers.jsonl", _lines)


def _lines(records: Sequence[Record]) -> str:
    text = ""
    for record in records:
        row = {"image": record.image.name, "answer": to_json(record.answer)}
        text += json.dumps(row) + "\n"
    return text


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
            box = codec.tokens(item.box_xyxy, size_wh)
            objects.append(form(label=item.category, box=box))
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
    return item.box_xyxy[0] + item.box_xyxy[2]
