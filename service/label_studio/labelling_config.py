"""A project's labelling configuration (XML) as the control tags that a model can fill.

It knows no models.

<View>
  <Image name="image" value="$image"/>                      object tag: where a task has its image
  <RectangleLabels name="box" toName="image">               control tag
    <Label value="Car" predicted_values="red car,blue car"/>  its labels; phrases sent to models
  </RectangleLabels>
</View>

Label Studio keeps attributes that it does not know; those that start with `model_` are options of
this backend. Source of the tags and of `predicted_values`: HumanSignal/label-studio
docs/source/tags, and HumanSignal/label-studio-ml-backend@d02cedf label_studio_ml/examples/yolo.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from service.errors import InvalidRequest
from tasks.errors import shown

LABELS_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
_CONTROL_TAGS = (*LABELS_TAGS, "Rectangle", "Polygon", "TextArea", "Choices", "Labels")
MAX_CONFIG_CHARS = 500_000
_MAX_TAGS = 10_000  # opening and closing ones
_MAX_CONTROLS = 50
_MAX_NAME_CHARS = 200
# a TextArea whose name starts with it is the user's prompt, as in Label Studio's own examples
_PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Label:
    """A label or a choice: its name in results, and the phrases that mean it to a model."""

    value: str
    phrases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """A control tag over an image."""

    tag: str
    name: str
    image: str  # name of the object tag
    image_key: str  # key in a task's data
    labels: tuple[Label, ...]
    attributes: Mapping[str, str]
    label_by_phrase: Mapping[str, str]  # folded phrase: its label

    @property
    def result_type(self) -> str:
        """Type of its results, and the key of its labels in them."""
        return self.tag.lower()

    @property
    def is_prompt(self) -> bool:
        """True for a text written by the user, not by a model."""
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
        if element.tag in _CONTROL_TAGS and image in image_keys:
            controls.append(_control(element, children, image, image_keys[image]))
    if len(controls) > _MAX_CONTROLS:
        raise _invalid(f"has {len(controls)} control tags; the maximum is {_MAX_CONTROLS}")
    if all(control.is_prompt for control in controls):
        raise _invalid(f"has none of the tags {', '.join(_CONTROL_TAGS)} over an Image")
    return tuple(controls)


def _parse(text: str) -> ElementTree.Element:
    if len(text) > MAX_CONFIG_CHARS or text.count("<") > _MAX_TAGS:
        maximum = f"{MAX_CONFIG_CHARS} characters and {_MAX_TAGS} opening and closing tags"
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
    labels = tuple(_labels(child for child in children if child.tag == child_tag))
    if element.tag in ("Choices", *LABELS_TAGS) and not labels:
        raise _invalid(f"gives {element.tag} no labels; a model must be asked for some")
    by_phrase: dict[str, str] = {}
    for label in labels:
        for phrase in label.phrases:
            by_phrase.setdefault(phrase.casefold(), label.value)
    name = _name(attributes.get("name", ""))
    return Control(element.tag, name, image, image_key, labels, attributes, by_phrase)


def _labels(elements: Iterable[ElementTree.Element]) -> Iterator[Label]:
    for element in elements:
        value = element.attrib.get("value", "")
        predicted = element.attrib.get("predicted_values")
        texts = [value] if predicted is None else predicted.split(",")
        phrases = tuple(filter(None, (" ".join(text.split()) for text in texts)))
        name = _name(element.attrib.get("alias") or value)
        if phrases:
            yield Label(name, phrases)


def _name(text: str) -> str:
    if len(text) > _MAX_NAME_CHARS:
        problem = f"has a name or value of {len(text)} characters, {shown(text)}"
        raise _invalid(f"{problem}; the maximum is {_MAX_NAME_CHARS}")
    return text


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the labelling configuration {problem}", "label_config")
