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
from tasks.table import MAX_LABELS

LABELS_TAGS = ("RectangleLabels", "PolygonLabels", "BrushLabels")
_CONTROL_TAGS = (*LABELS_TAGS, "Rectangle", "Polygon", "TextArea", "Choices", "Labels")
MAX_CONFIG_CHARS = 500_000
_MAX_TAGS = 10_000  # opening and closing ones
_MAX_NESTING = 50
_MAX_CONTROLS = 50
_MAX_LABELS = 1000  # all controls together
_MAX_PHRASES = MAX_LABELS  # per label
_MAX_NAME_CHARS = 200
# a TextArea whose name starts with it is the user's prompt, as in Label Studio's own examples
_PROMPT = "prompt"

# A control tag, and the labels and choices that have no nearer control around them
_Tag = tuple[ElementTree.Element, list[ElementTree.Element]]


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
    tags = _control_tags(root)
    if len(tags) > _MAX_CONTROLS:
        raise _invalid(f"has {len(tags)} control tags; the maximum is {_MAX_CONTROLS}")
    values: dict[str, str] = {}  # key: name of an Image, whose last one counts
    for element in root.iter("Image"):
        values[element.attrib.get("name", "")] = element.attrib.get("value", "")
    image_keys: dict[str, str] = {}
    for name, value in values.items():
        if name and value.startswith("$"):
            image_keys[_name(name)] = _name(value[1:])
    controls: list[Control] = []
    for element, children in tags:
        image = element.attrib["toName"]
        if element.tag in _CONTROL_TAGS and image in image_keys:
            controls.append(_control(element, children, image, image_keys[image]))
    if all(control.is_prompt for control in controls):
        names = sorted({element.tag for element, _ in tags})
        supported = f"of those over an Image, {', '.join(_CONTROL_TAGS)} can be filled"
        raise _invalid(f"has the control tags {shown(names)}; {supported}")
    num_labels = sum(len(control.labels) for control in controls)
    if num_labels > _MAX_LABELS:
        raise _invalid(f"has {num_labels} labels and choices; the maximum is {_MAX_LABELS}")
    return tuple(controls)


def _parse(text: str) -> ElementTree.Element:
    if len(text) > MAX_CONFIG_CHARS:
        raise _invalid(f"has {len(text)} characters; the maximum is {MAX_CONFIG_CHARS}")
    num_tags = text.count("<")
    if num_tags > _MAX_TAGS:
        raise _invalid(f"has {num_tags} opening and closing tags; the maximum is {_MAX_TAGS}")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise _invalid("declares a document type, which is not accepted")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _invalid(f"is not XML: {error}") from error


def _control_tags(root: ElementTree.Element) -> list[_Tag]:
    """Return the control tags in the order of the text."""
    tags: list[_Tag] = []
    pending: list[tuple[ElementTree.Element, int, list[ElementTree.Element]]] = [(root, 1, [])]
    while pending:
        element, depth, children = pending.pop()
        if depth > _MAX_NESTING:
            raise _invalid(f"nests tags {depth} deep; the maximum is {_MAX_NESTING}")
        if "toName" in element.attrib:
            children = []
            tags.append((element, children))
        elif element.tag in ("Label", "Choice"):
            children.append(element)
        pending += [(child, depth + 1, children) for child in reversed(element)]
    return tags


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
        if len(phrases) > _MAX_PHRASES:
            problem = f"gives {element.tag} {shown(name)} {len(phrases)} phrases"
            raise _invalid(f"{problem}; the maximum is {_MAX_PHRASES}")
        if phrases:
            yield Label(name, phrases)


def _name(text: str) -> str:
    if len(text) > _MAX_NAME_CHARS:
        problem = f"has a name or value of {len(text)} characters, {shown(text)}"
        raise _invalid(f"{problem}; the maximum is {_MAX_NAME_CHARS}")
    return text


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the labelling configuration {problem}", "label_config")
