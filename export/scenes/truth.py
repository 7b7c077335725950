"""Questions about a scene and their true answers.

A question has the parameters of a REST request; geometry is in pixels of the scene's canvas until
`scaled`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from export.scenes.geometry import Ring
from export.scenes.scene import CANVAS_PX, BoxXYXY

Parameters = Mapping[str, str | list[str] | list[float]]


@dataclass(frozen=True, slots=True)
class TextTruth:
    """The exact text; empty if the image has none."""

    text: str


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """A box and its exact label; a region proposal's label is empty."""

    label: str
    box_xyxy: BoxXYXY


@dataclass(frozen=True, slots=True)
class DetectionsTruth:
    """All boxes to be detected, left to right; none if the requested labels are absent."""

    boxes: tuple[LabelledBox, ...]

    def scaled(self, scale_x: float, scale_y: float) -> "DetectionsTruth":
        """Return the same boxes, each axis multiplied by its factor."""
        boxes = []
        for each in self.boxes:
            boxes.append(LabelledBox(each.label, _scaled_box(each.box_xyxy, scale_x, scale_y)))
        return DetectionsTruth(tuple(boxes))


@dataclass(frozen=True, slots=True)
class InstancesTruth:
    """The outlines of the objects as drawn, without labels."""

    outlines: tuple[Ring, ...]

    def scaled(self, scale_x: float, scale_y: float) -> "InstancesTruth":
        """Return the same outlines, each axis multiplied by its factor."""
        scaled = (_scaled_ring(outline, scale_x, scale_y) for outline in self.outlines)
        return InstancesTruth(tuple(scaled))


@dataclass(frozen=True, slots=True)
class QuadText:
    """A word and its corners from the top left clockwise."""

    text: str
    quad_xy: Ring


@dataclass(frozen=True, slots=True)
class TextRegionsTruth:
    """All words of the image."""

    text_regions: tuple[QuadText, ...]

    def scaled(self, scale_x: float, scale_y: float) -> "TextRegionsTruth":
        """Return the same words, each axis multiplied by its factor."""
        words = (
            (each.text, _scaled_ring(each.quad_xy, scale_x, scale_y)) for each in self.text_regions
        )
        return TextRegionsTruth(tuple(QuadText(*each) for each in words))


Truth = TextTruth | DetectionsTruth | InstancesTruth | TextRegionsTruth


@dataclass(frozen=True, slots=True)
class Question:
    """A task with the parameters of a request (`region` in pixels), and the true answer.

    `name` is the question's row in an accuracy table, such as `captioning short`.
    """

    name: str
    task: str
    parameters: Parameters
    truth: Truth

    def scaled(self, image_size_wh: tuple[int, int]) -> "Question":
        """Return the question about the scene rendered at this image size."""
        scale_x = image_size_wh[0] / CANVAS_PX
        scale_y = image_size_wh[1] / CANVAS_PX
        parameters = dict(self.parameters)
        match parameters.get("region"):
            case [float(left), float(top), float(right), float(bottom)]:
                parameters["region"] = list(
                    _scaled_box((left, top, right, bottom), scale_x, scale_y)
                )
        truth = (
            self.truth if isinstance(self.truth, TextTruth) else self.truth.scaled(scale_x, scale_y)
        )
        return replace(self, parameters=parameters, truth=truth)


def _scaled_box(box: BoxXYXY, scale_x: float, scale_y: float) -> BoxXYXY:
    return box[0] * scale_x, box[1] * scale_y, box[2] * scale_x, box[3] * scale_y


def _scaled_ring(ring: Ring, scale_x: float, scale_y: float) -> Ring:
    return tuple((x * scale_x, y * scale_y) for x, y in ring)
