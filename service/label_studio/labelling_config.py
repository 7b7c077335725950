"""A project's labelling configuration (XML) as the control tags that a model can fill. It knows no models.

<View>
  <Image name="image" value="$image"/>                      object tag: where a task has its image
  <RectangleLabels name="box" toName="image">               control tag
    <Label value="Car" predicted_values="red car,blue car"/>  its labels, and the phrases that models are asked for
  </RectangleLabels>
</View>

Label Studio keeps attributes that it does not know; those that start with `model_` are options of this backend.
Source of the tags and of `predicted_values`: HumanSignal/label-studio docs/source/tags, and
HumanSignal/label-studio-ml-backend@d02cedf label_studio_ml/examples/yolo.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args
from xml.etree import ElementTree

from service.errors import InvalidRequest
from tasks.errors import shown

LabelsTag = Literal["RectangleLabels", "PolygonLabels", "BrushLabels"]
ShapeTag = Literal["Rectangle", "Polygon"]
TextTag = Literal["TextArea", "Choices"]
ControlTag = LabelsTag | ShapeTag | TextTag | Literal["Labels"]

LABELS_TAGS: tuple[LabelsTag, ...] = get_args(LabelsTag)
_CONTROL_TAGS: tuple[ControlTag, ...] = (*LABELS_TAGS, *get_args(ShapeTag), *get_args(TextTag), "Labels")
_MAX_CHARS = 500_000
_MAX_CONTROLS = 50
_MAX_LABELS = 500
_PROMPT = "prompt"  # a TextArea whose name starts with it is the user's prompt, as in Label Studio's own examples


@dataclass(frozen=True, slots=True)
class Label:
    """A label or a choice: its name in results, and the phrases that mean it to a model."""

    value: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """A control tag over an image."""

    tag: ControlTag
    name: str
    image: str  # name of the object tag
    image_key: str  # of a task's data
    labels: tuple[Label, ...]
    attributes: Mapping[str, str]

    @property
    def result_type(self) -> str:
        """Type of its results, and the key of its labels in them."""
        return self.tag.lower()

    @property
    def is_prompt(self) -> bool:
        """True for a text that the user writes and no model does."""
        return self.tag == "TextArea" and self.name.startswith(_PROMPT)

    @property
    def is_per_region(self) -> bool:
        return self._is_set("perregion")

    @property
    def is_interactive_only(self) -> bool:
        return self._is_set("smartonly")

    def _is_set(self, attribute: str) -> bool:
        return self.attributes.get(attribute, "false").lower() == "true"

    def label_of(self, phrase: str) -> str | None:
        """Return the label that a phrase means, regardless of case."""
        folded = phrase.casefold()
        return next((label.value for label in self.labels if folded in map(str.casefold, label.phrases)), None)


def parse_config(text: str) -> tuple[Control, ...]:
    """Return the controls over images that a model can fill; raise `InvalidRequest` if there is none."""
    root = _parse(text)
    images = _image_keys(root)
    found = [each for each in root.iter() if "toName" in each.attrib]
    if len(found) > _MAX_CONTROLS:
        raise _invalid(f"has {len(found)} control tags; the maximum is {_MAX_CONTROLS}")
    controls = tuple(
        _control(each, images) for each in found if each.tag in _CONTROL_TAGS and each.attrib["toName"] in images
    )
    if not any(not control.is_prompt for control in controls):
        tags = sorted({each.tag for each in found})
        supported = ", ".join(_CONTROL_TAGS)
        raise _invalid(f"has the control tags {shown(tags)}; of those over an Image, {supported} can be filled")
    return controls


def _parse(text: str) -> ElementTree.Element:
    if len(text) > _MAX_CHARS:
        raise _invalid(f"has {len(text)} characters; the maximum is {_MAX_CHARS}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise _invalid("declares a document type, which is not accepted")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _invalid(f"is not XML: {error}") from error


def _image_keys(root: ElementTree.Element) -> dict[str, str]:
    """Return the key of the data of each Image tag by its name."""
    images = {each.attrib.get("name", ""): each.attrib.get("value", "") for each in root.iter("Image")}
    return {name: value[1:] for name, value in images.items() if name and value.startswith("$")}


def _control(element: ElementTree.Element, images: Mapping[str, str]) -> Control:
    attributes = {name.lower(): value for name, value in element.attrib.items()}
    image = element.attrib["toName"]
    tag: ControlTag = element.tag  # type: ignore[assignment]  # the caller has checked it
    labels = tuple(_labels(element.iter("Choice" if tag == "Choices" else "Label")))
    if len(labels) > _MAX_LABELS:
        raise _invalid(f"gives {tag} {len(labels)} labels; the maximum is {_MAX_LABELS}")
    if tag in ("Choices", *LABELS_TAGS) and not labels:
        raise _invalid(f"gives {tag} no labels; a model must be asked for some")
    return Control(tag, attributes.get("name", ""), image, images[image], labels, attributes)


def _labels(elements: Iterable[ElementTree.Element]) -> Iterable[Label]:
    for each in elements:
        value = each.attrib.get("value", "")
        predicted = each.attrib.get("predicted_values", value)
        phrases = tuple(filter(None, map(str.strip, predicted.split(",") if predicted is not value else [value])))
        if phrases:
            yield Label(each.attrib.get("alias") or value, phrases)


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"the labelling configuration {what}", "label_config")
