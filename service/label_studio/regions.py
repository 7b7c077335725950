"""Answers to results of a prediction: boxes, polygons, brush masks, texts, choices.

Source: HumanSignal/label-studio docs/source/guide/predictions.md (units of image annotations),
label_studio_sdk/label_interface/control_tags.py (values that Label Studio accepts).
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.inference.prediction import Answer
from service.label_studio.brush import brush_rle
from service.label_studio.labelling_config import Control
from service.schema.outlines import corners, outlines, simplified
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    InstancesResult,
    PointXy,
    TextRegionsResult,
    TextResult,
)

JsonObject = dict[str, Any]

_TOLERANCE_PX = 1.0


@dataclass(frozen=True, slots=True)
class Canvas:
    """The image under the regions."""

    size_wh: tuple[int, int]

    def box(self, box: BoxXyxy) -> JsonObject:
        """Return a box as corner, width and height in percent."""
        x1, y1 = self.point(box[:2])
        x2, y2 = self.point(box[2:])
        return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}

    def point(self, point: PointXy) -> tuple[float, float]:
        """Return a point in percent, within the image as Label Studio requires."""
        x, y = (
            min(max(100 * at / side, 0.0), 100.0)
            for at, side in zip(point, self.size_wh, strict=True)
        )
        return x, y

    def polygon(self, points: Sequence[PointXy]) -> JsonObject:
        return {"points": [list(self.point(point)) for point in points], "closed": True}

    def region(
        self, control: Control, value: JsonObject, score: float | None, region_id: str = ""
    ) -> JsonObject:
        """Return one result of a control."""
        width, height = self.size_wh
        return {
            "id": region_id or uuid.uuid4().hex[:10],
            "from_name": control.name,
            "to_name": control.image,
            "type": control.result_type,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": value,
            **({} if score is None else {"score": score}),
        }


def labelled_boxes(
    answer: Answer, control: Control, label: str | None = None
) -> Iterator[JsonObject]:
    """Yield the detections under the labels that their phrases mean, or all under `label`."""
    assert isinstance(answer.result, DetectionsResult)
    canvas = Canvas(answer.image_size_wh)
    for found in answer.result.detections:
        name = label or control.label_of(found.label)
        if name is not None:
            yield canvas.region(
                control, canvas.box(found.box) | {control.result_type: [name]}, found.score
            )


def labelled_masks(answer: Answer, control: Control, label: str) -> Iterator[JsonObject]:
    """Yield the instances as polygons or brush masks."""
    assert isinstance(answer.result, InstancesResult)
    canvas = Canvas(answer.image_size_wh)
    for found in answer.result.instances:
        if control.tag != "BrushLabels":
            rings = outlines(found)
            values = [canvas.polygon(simplified(ring, _TOLERANCE_PX)) for ring in rings]
        else:
            mask = found.mask
            values = [] if mask is None else [{"format": "rle", "rle": brush_rle(mask)}]
        for value in values:
            yield canvas.region(control, value | {control.result_type: [label]}, found.score)


@dataclass(frozen=True, slots=True)
class RegionTags:
    """The tags of a region with text: its shape, its text, and its label, if any."""

    shape: Control
    text: Control
    label: Control | None


def located_texts(answer: Answer, tags: RegionTags) -> Iterator[JsonObject]:
    """Yield the results of each piece of text, which share an id: shape, label, transcription."""
    canvas = Canvas(answer.image_size_wh)
    located: list[tuple[Sequence[PointXy], str, float]] = []
    if isinstance(answer.result, TextRegionsResult):
        located = [(each.quad, each.text, each.score) for each in answer.result.text_regions]
    elif isinstance(answer.result, DetectionsResult):
        located = [(corners(each.box), each.label, each.score) for each in answer.result.detections]
    for quad, text, score in located:
        xs, ys = zip(*quad, strict=True)
        is_polygon = tags.shape.tag in ("Polygon", "PolygonLabels")
        value = (
            canvas.polygon(quad) if is_polygon else canvas.box((min(xs), min(ys), max(xs), max(ys)))
        )
        labels = (
            {} if tags.label is None else {tags.label.result_type: [tags.label.labels[0].value]}
        )
        region_id = uuid.uuid4().hex[:10]
        is_labelled_shape = tags.label is tags.shape
        yield canvas.region(
            tags.shape, value | (labels if is_labelled_shape else {}), score, region_id
        )
        if tags.label is not None and not is_labelled_shape:
            yield canvas.region(tags.label, value | labels, score, region_id)
        yield canvas.region(tags.text, value | {"text": [text]}, score, region_id)


def boxes(answer: Answer, control: Control) -> Iterator[JsonObject]:
    """Yield the detections without labels."""
    assert isinstance(answer.result, DetectionsResult)
    canvas = Canvas(answer.image_size_wh)
    for found in answer.result.detections:
        yield canvas.region(control, canvas.box(found.box), found.score)


def written_text(answer: Answer, control: Control) -> Iterator[JsonObject]:
    """Yield the text of the whole image; none if it is blank."""
    assert isinstance(answer.result, TextResult)
    if answer.result.text.strip():
        yield Canvas(answer.image_size_wh).region(control, {"text": [answer.result.text]}, None)


def chosen_answer(answer: Answer, control: Control) -> Iterator[JsonObject]:
    """Yield the choice that the answer to a question names; none for any other answer."""
    assert isinstance(answer.result, TextResult)
    choice = control.label_of(answer.result.text.strip().rstrip("."))
    if choice is not None:
        yield Canvas(answer.image_size_wh).region(control, {"choices": [choice]}, None)


def chosen_objects(answer: Answer, control: Control) -> Iterator[JsonObject]:
    """Yield the choice detected with the highest score; all in a multiple choice."""
    assert isinstance(answer.result, DetectionsResult)
    scores: dict[str, float] = {}
    for found in sorted(answer.result.detections, key=lambda each: -each.score):
        choice = control.label_of(found.label)
        if choice is not None:
            scores.setdefault(choice, found.score)
    is_multiple = control.attributes.get("choice") == "multiple"
    chosen = list(scores) if is_multiple else list(scores)[:1]
    if chosen:
        yield Canvas(answer.image_size_wh).region(control, {"choices": chosen}, scores[chosen[0]])


def prediction(model_version: str, results: Iterable[Mapping[str, Any]]) -> JsonObject:
    """Return a prediction, whose score is the mean of its results'."""
    listed = list(results)
    scores = [each["score"] for each in listed if "score" in each]
    return {
        "model_version": model_version,
        "result": listed,
        "score": sum(scores) / len(scores) if scores else None,
    }
