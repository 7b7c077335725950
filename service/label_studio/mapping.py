"""A project's labelling configuration as tasks of a model, and the answers as results.

<View>
  <Image name="image" value="$image"/>                      object tag: where a task has its image
  <RectangleLabels name="box" toName="image">               control tag
    <Label value="Car" predicted_values="red car,blue car"/>  its labels; phrases sent to models
  </RectangleLabels>
</View>

`_TAGS` has for each control tag its tasks, and the parameter that takes the phrases of its labels.
Attributes that begin with `model_` are options of this backend: Label Studio keeps those that it
does not know. A text area in or beside a shape, `perRegion`, asks for texts in their places
instead. For interactive use, a text that the user writes takes the place of the phrases.

Sources: HumanSignal/label-studio docs/source/tags, docs/source/guide/predictions.md (units of image
annotations), label_studio_sdk/label_interface/control_tags.py (values that Label Studio accepts);
HumanSignal/label-studio-ml-backend@d02cedf label_studio_ml/examples/yolo (`predicted_values`);
thi-ng/umbrella packages/rle-pack and label-studio-sdk label_studio_sdk/converter/brush.py (masks).
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Annotated, Any
from xml.etree import ElementTree

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field

from service.errors import InvalidRequest
from service.inference.prediction import Answer
from service.inference.request_fields import PredictFields, parse_fields
from service.schema.outlines import corners, outlines, simplified
from service.validation import validated
from tasks import results
from tasks.errors import shown
from tasks.run_length import decode_mask
from tasks.scores import SCORE_DIGITS
from tasks.table import MAX_GIVEN_CHARS, MAX_LABELS

JsonObject = dict[str, Any]

_QUESTION = "visual_question_answering"
_REGION_TEXT_TASKS = ("ocr_with_regions", "dense_region_captioning")
_TASK_OPTIONS = {"captioning": ("detail", "language"), _QUESTION: ("question", "language")}
MAX_ASKS = 500  # per image
# lines of a prompt: Label Studio sends the texts of a TextArea
_Texts = Annotated[
    list[Annotated[str, Field(max_length=MAX_GIVEN_CHARS)]],
    Field(max_length=100),
    BeforeValidator(lambda text: [text] if isinstance(text, str) else text),
]
_SHAPES = ("Rectangle", "Polygon", "RectangleLabels", "PolygonLabels")
_TOLERANCE_PX = 1.0
# rle-pack: 32 bits number of bytes, 5 word size - 1, 4 x 4 widths of lengths - 1, then the runs: 1
# bit "repeated", 2 bits index of the width, the length - 1 in 16 bits, 8 bits value
_CHANNELS = 4
_MAX_RUN = 2**16
_LABELS_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
_CONTROL_TAGS = (*_LABELS_TAGS, "Rectangle", "Polygon", "TextArea", "Choices", "Labels")
MAX_CONFIG_CHARS = 500_000
_MAX_MARKS = 10_000  # opening and closing tags, and commas: phrases take time and memory
_MAX_CONTROLS = 50
_MAX_NAME_CHARS = 200
# a TextArea whose name starts with it is the user's prompt, as in Label Studio's own examples
_PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Control:
    """A control tag over an image."""

    tag: str
    name: str
    image: str  # name of the object tag
    image_key: str  # key in a task's data
    labels: Mapping[str, tuple[str, ...]]  # key: name in results; the phrases sent to models
    attributes: Mapping[str, str]
    label_by_phrase: Mapping[str, str]  # folded phrase: its label

    @property
    def result_type(self) -> str:
        """Type of its results, and the key of its labels in them."""
        return self.tag.lower()

    @property
    def is_prompt(self) -> bool:
        return self.tag == "TextArea" and self.name.startswith(_PROMPT)

    def is_set(self, attribute: str) -> bool:
        return self.attributes.get(attribute, "false").lower() == "true"

    def label_of(self, phrase: str) -> str | None:
        return self.label_by_phrase.get(phrase.casefold())


def parse_config(text: str) -> tuple[Control, ...]:
    """Return the controls over images that a model can fill; raise `InvalidRequest`."""
    root = _parse(text)
    image_keys: dict[str, str] = {}
    for element in root.iter("Image"):
        name, value = element.attrib.get("name", ""), element.attrib.get("value", "")
        if name and value.startswith("$"):
            image_keys[_name(name)] = _name(value[1:])
    controls: list[Control] = []
    for element, children in _children_of_controls(root).items():
        image = element.attrib["toName"]
        is_asked = element.tag != "Choices" or "model_question" in element.attrib
        if element.tag in _CONTROL_TAGS and image in image_keys and is_asked:
            controls.append(_control(element, children, image, image_keys[image]))
    if len(controls) > _MAX_CONTROLS:
        raise _invalid(f"has {len(controls)} control tags; the maximum is {_MAX_CONTROLS}")
    if all(control.is_prompt for control in controls):
        tags = ", ".join(_CONTROL_TAGS)
        raise _invalid(f"has none of the tags {tags} (Choices with model_question) over an Image")
    return tuple(controls)


def _parse(text: str) -> ElementTree.Element:
    if len(text) > MAX_CONFIG_CHARS or text.count("<") + text.count(",") > _MAX_MARKS:
        maximum = f"{MAX_CONFIG_CHARS} characters and {_MAX_MARKS} tags and commas"
        raise _invalid(f"is too long; the maximum is {maximum}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise _invalid("declares a document type, which is not accepted")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _invalid(f"is not XML: {error}") from error


def _children_of_controls(
    root: ElementTree.Element,
) -> dict[ElementTree.Element, list[ElementTree.Element]]:
    """Return the control tags in the order of the text, with the labels of each.

    A label belongs to the nearest control around it.
    """
    children_of: dict[ElementTree.Element, list[ElementTree.Element]] = {}
    pending: list[tuple[ElementTree.Element, list[ElementTree.Element]]] = [(root, [])]
    while pending:
        element, siblings = pending.pop()
        if "toName" in element.attrib:
            siblings = children_of[element] = []
        elif element.tag in ("Label", "Choice"):
            siblings.append(element)
        pending += [(child, siblings) for child in reversed(element)]
    return children_of


def _control(
    element: ElementTree.Element, children: list[ElementTree.Element], image: str, image_key: str
) -> Control:
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    child_tag = "Choice" if element.tag == "Choices" else "Label"
    labels = _labels(child for child in children if child.tag == child_tag)
    if element.tag in ("Choices", *_LABELS_TAGS) and not labels:
        raise _invalid(f"gives {element.tag} no labels; a model must be asked for some")
    by_phrase: dict[str, str] = {}
    for label, phrases in labels.items():
        for phrase in phrases:
            by_phrase.setdefault(phrase.casefold(), label)
    name = _name(attributes.get("name", ""))
    return Control(element.tag, name, image, image_key, labels, attributes, by_phrase)


def _labels(elements: Iterable[ElementTree.Element]) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for element in elements:
        value = element.attrib.get("value", "")
        predicted = element.attrib.get("predicted_values")
        texts = [value] if predicted is None else predicted.split(",")
        phrases = tuple(filter(None, (" ".join(text.split()) for text in texts)))
        name = _name(element.attrib.get("alias") or value)
        if phrases:
            labels[name] = (*labels.get(name, ()), *phrases)
    return labels


def _name(text: str) -> str:
    if len(text) > _MAX_NAME_CHARS:
        problem = f"has a name or value of {len(text)} characters, {shown(text)}"
        raise _invalid(f"{problem}; the maximum is {_MAX_NAME_CHARS}")
    return text


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the labelling configuration {problem}", "label_config")


@dataclass(frozen=True, slots=True)
class _Tag:
    """How a control tag asks about an image."""

    tasks: tuple[str, ...]  # the first is the default
    phrases: str = ""  # the parameter of its labels' phrases: `labels` all, `phrase` one
    fields: Mapping[str, object] = field(default_factory=dict)


_TAGS = {
    "RectangleLabels": _Tag(("open_vocabulary_detection",), "labels"),
    "PolygonLabels": _Tag(("instance_segmentation",), "phrase", {"mask_format": "polygon"}),
    "BrushLabels": _Tag(("instance_segmentation",), "phrase", {"mask_format": "rle"}),
    "Rectangle": _Tag(("region_proposal",)),
    "TextArea": _Tag(("captioning", "ocr", _QUESTION)),
    "Choices": _Tag((_QUESTION,)),  # without a question they are the user's alone
}


@dataclass(frozen=True, slots=True)
class RegionTags:
    """The tags of a region with text: its shape, its text, and its label, if any."""

    shape: Control
    text: Control
    label: Control | None


@dataclass(frozen=True, slots=True)
class Ask:
    """One task for a model, and the control that its answer fills."""

    control: Control
    fields: dict[str, object]  # without model
    label: str | None = None  # all objects have it; None: that of their phrases
    region_tags: RegionTags | None = None

    @property
    def task(self) -> str:
        return str(self.fields["task"])

    def results(self, answer: Answer) -> Iterator[JsonObject]:
        canvas = _Canvas(answer.image_size_wh)
        control = self.control
        if self.region_tags is not None:
            for item in answer.result.items:
                yield from canvas.located(item, self.region_tags)
            return
        match answer.result:
            case results.TextResult(text):
                value = _text_value(control, text)
                if value is not None:
                    yield canvas.region(control, value, None)
            case results.DetectionsResult(detections):
                for detection in detections:
                    name = self.label or control.label_of(detection.label)
                    labels = {} if name is None else {control.result_type: [name]}
                    if labels or not control.labels:
                        value = canvas.box(detection.box) | labels
                        yield canvas.region(control, value, detection.score)
            case results.InstancesResult(instances):
                for instance in instances:
                    for shape in _mask_values(canvas, instance, control):
                        value = shape | {control.result_type: [self.label]}
                        yield canvas.region(control, value, instance.score)


def image_asks(controls: Sequence[Control]) -> tuple[Ask, ...]:
    """Return the tasks of an image; raise `InvalidRequest` for an invalid label or option."""
    filled = [c for c in controls if not (c.is_prompt or c.is_set("smartonly"))]
    asks: list[Ask] = []
    for text in list(filled):
        if text.tag == "TextArea" and text.is_set("perregion"):
            tags = _region_tags(text, filled)
            used = (text, tags.shape, tags.label)
            filled = [control for control in filled if control not in used]
            task = _chosen_task(text, _REGION_TEXT_TASKS)
            asks.append(Ask(text, _fields(text, task), region_tags=tags))
    for control in filled:
        if not control.is_set("perregion"):
            asks += islice(_control_asks(control), MAX_ASKS + 1)
    if len(asks) > MAX_ASKS:
        raise _invalid(f"needs more than {MAX_ASKS} predictions of an image")
    for ask in asks:
        parse_fields(PredictFields, ask.fields)
    return tuple(asks)


def _region_tags(text: Control, controls: Sequence[Control]) -> RegionTags:
    """Return the tags of a perRegion text: the first shape over its image, and a label."""
    over_image = [control for control in controls if control.image == text.image]
    shapes = [control for control in over_image if control.tag in _SHAPES]
    if not shapes:
        problem = f"TextArea {text.name} is perRegion and needs one of {', '.join(_SHAPES)}"
        raise InvalidRequest(problem, "label_config")
    shape = min(shapes, key=lambda control: _SHAPES.index(control.tag))
    labelled = [shape] if shape.labels else over_image
    for control in labelled:
        if control.labels and control.tag in ("Labels", shape.tag):
            return RegionTags(shape, text, control)
    return RegionTags(shape, text, None)


def _control_asks(control: Control) -> Iterator[Ask]:
    tag = _TAGS.get(control.tag)
    if tag is None:
        return
    task = _chosen_task(control, tag.tasks) if control.tag == "TextArea" else tag.tasks[0]
    # without one the user's prompt is the question
    if task == _QUESTION and "model_question" not in control.attributes:
        return
    fields = _fields(control, task)
    if task == _QUESTION or not tag.phrases:
        yield Ask(control, fields)
    elif tag.phrases == "labels":
        by_case: dict[str, str] = {}
        for phrase in chain.from_iterable(control.labels.values()):
            by_case[phrase.casefold()] = phrase
        phrases = list(by_case.values())
        for start in range(0, len(phrases), MAX_LABELS):
            yield Ask(control, {**fields, "labels": phrases[start : start + MAX_LABELS]})
    else:
        for label, label_phrases in control.labels.items():
            for phrase in label_phrases:
                yield Ask(control, {**fields, tag.phrases: phrase}, label)


def _chosen_task(control: Control, allowed: Sequence[str]) -> str:
    is_question = _QUESTION in allowed and "model_question" in control.attributes
    task = control.attributes.get("model_task", _QUESTION if is_question else allowed[0])
    if task not in allowed:
        problem = f"model_task of {control.tag} {control.name} is {shown(task)}"
        raise InvalidRequest(f"{problem}; it must be one of {', '.join(allowed)}", "label_config")
    return task


def _fields(control: Control, task: str) -> dict[str, object]:
    attributes = control.attributes
    fields: dict[str, object] = {"task": task, **_TAGS[control.tag].fields}
    for name in _TASK_OPTIONS.get(task, ()):
        if f"model_{name}" in attributes:
            fields[name] = attributes[f"model_{name}"]
    threshold = attributes.get("model_score_threshold")
    if threshold is not None:
        try:
            fields["min_score"] = float(threshold)
        except ValueError:
            fields["min_score"] = threshold  # refused with the other fields
    return fields


class _Prompt(BaseModel):
    text: _Texts


def prompt_asks(controls: Sequence[Control], context: Mapping[str, object]) -> tuple[Ask, ...]:
    """Return the tasks of the last prompt, a text; raise `InvalidRequest` for any other."""
    regions = context.get("result")
    if not isinstance(regions, list) or not regions or regions[-1] is None:
        return ()
    match regions[-1]:
        case {"value": {"text": _} as value}:
            return tuple(_text_asks(controls, " ".join(validated(_Prompt, value).text)))
    raise InvalidRequest("a prompt must be a text, not a drawn box or points", "context.result")


def _text_asks(controls: Sequence[Control], prompt: str) -> Iterator[Ask]:
    for control in controls:
        tag = _TAGS.get(control.tag)
        if control.tag in _LABELS_TAGS and tag is not None:
            phrases = [prompt] if tag.phrases == "labels" else prompt
            fields = {**_fields(control, tag.tasks[0]), tag.phrases: phrases}
            yield Ask(control, fields, control.label_of(prompt) or next(iter(control.labels)))
        elif control.tag == "TextArea" and tag is not None:
            is_filled = not (control.is_prompt or control.is_set("perregion"))
            if is_filled and _chosen_task(control, tag.tasks) == _QUESTION:
                yield Ask(control, {"task": _QUESTION, "question": prompt})


@dataclass(frozen=True, slots=True)
class _Canvas:
    """The image under the regions, whose values are in percent and within it."""

    size_wh: tuple[int, int]

    def box(self, box: results.BoxXyxy) -> JsonObject:
        x1, y1 = self.point(box[:2])
        x2, y2 = self.point(box[2:])
        return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}

    def point(self, point: results.PointXy) -> list[float]:
        sides = zip(point, self.size_wh, strict=True)
        return [min(max(100 * position / side, 0.0), 100.0) for position, side in sides]

    def polygon(self, points: Sequence[results.PointXy]) -> JsonObject:
        return {"points": [self.point(point) for point in points], "closed": True}

    def region(
        self, control: Control, value: JsonObject, score: float | None, region_id: str = ""
    ) -> JsonObject:
        width, height = self.size_wh
        result = {
            "id": region_id or _new_id(),
            "from_name": control.name,
            "to_name": control.image,
            "type": control.result_type,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value,
        }
        return result if score is None else result | {"score": score}

    def located(self, item: results.FoundObject, tags: RegionTags) -> Iterator[JsonObject]:
        """Yield the results of a piece of text, which share an id: shape, label, transcription."""
        points = item.quad if isinstance(item, results.TextRegion) else corners(item.box)
        if tags.shape.tag in ("Polygon", "PolygonLabels"):
            outline = self.polygon(points)
        else:  # also of a region without an area, which has no box
            xs, ys = zip(*points, strict=True)
            outline = self.box((min(xs), min(ys), max(xs), max(ys)))
        values = [] if tags.label is tags.shape else [(tags.shape, outline)]
        if tags.label is not None:
            labels = {tags.label.result_type: [next(iter(tags.label.labels))]}
            values.append((tags.label, outline | labels))
        values.append((tags.text, outline | {"text": [item.label]}))
        region_id = _new_id()
        for control, value in values:
            yield self.region(control, value, item.score, region_id)


def _new_id() -> str:
    return uuid.uuid4().hex[:10]


def _mask_values(
    canvas: _Canvas, instance: results.Instance, control: Control
) -> Iterator[JsonObject]:
    if control.tag != "BrushLabels":
        for ring in outlines(instance):
            yield canvas.polygon(simplified(ring, _TOLERANCE_PX))
    elif instance.mask is not None:
        yield {"format": "rle", "rle": brush_rle(instance.mask)}


def _text_value(control: Control, text: str) -> JsonObject | None:
    """Return the text of the image or the choice that it names; None for any other answer."""
    if control.tag != "Choices":
        return {"text": [text]} if text.strip() else None
    choice = control.label_of(text.strip().rstrip("."))
    return None if choice is None else {"choices": [choice]}


def prediction(model_version: str, results: Iterable[Mapping[str, Any]]) -> JsonObject:
    listed = list(results)
    scores = [result["score"] for result in listed if "score" in result]
    return {
        "model_version": model_version,
        "result": listed,
        "score": round(sum(scores) / len(scores), SCORE_DIGITS) if scores else None,
    }


def brush_rle(mask: results.RunLengthMask) -> list[int]:
    """Return a mask in rle-pack's format: RGBA, 255 in all channels within it, 0 elsewhere."""
    pixels = decode_mask(mask).ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    lengths = np.diff(starts, append=pixels.size) * _CHANNELS
    values = np.where(pixels[starts], 255, 0)
    bits = [f"{pixels.size * _CHANNELS:032b}{7:05b}", 4 * f"{15:04b}"]
    for length, value in zip(lengths.tolist(), values.tolist(), strict=True):
        for start in range(0, length, _MAX_RUN):
            part = min(length - start, _MAX_RUN)
            bits.append(f"100{part - 1:016b}{value:08b}")
    ones = np.frombuffer("".join(bits).encode(), dtype=np.uint8) - ord("0")
    packed: list[int] = np.packbits(ones).tolist()
    return packed
