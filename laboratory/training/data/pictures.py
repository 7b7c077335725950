"""A scene as training reads it: subjects, questions and an image.

A subject is an object, by its index, or the word, `FIRST_LINE`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase, digits

from PIL import Image

from export.scenes import COLORS, MAX_OBJECTS, SHAPES, SIZES, BoxXYXY, Ring
from laboratory.questions import Question
from laboratory.training.data.mask_samples import Masks

Subject = int
FIRST_LINE = MAX_OBJECTS
NUM_SUBJECTS = FIRST_LINE + 1
NUM_CLASSES = {
    "color": len(COLORS),
    "thing": len(SHAPES),
    "size": len(SIZES),
    "brightness": 2,
}
CHARACTERS = tuple(ascii_uppercase + digits)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text answer with the subjects that it mentions."""

    text: str
    subjects: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SpannedQuestion:
    """A question; `spans` join to the text of a text answer."""

    question: Question
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """An object or a line of a picture, in pixels of the canvas."""

    name: str  # an object's name in phrases; a line's text
    box_xyxy: BoxXYXY
    quad_xy: Ring
    classes: Mapping[str, int] = field(default_factory=dict)  # color, thing, size
    characters: tuple[tuple[str, BoxXYXY], ...] = ()  # a line's, in order
    polygon_xy: Callable[[], Ring] = tuple
    mask: Callable[[], Masks] | None = None  # (64, 64) in its tight box


@dataclass(frozen=True, slots=True)
class Picture:
    """The parts of a scene, its questions and its image by size."""

    seed: int
    parts: Mapping[Subject, Part]
    is_light: bool
    asked: tuple[SpannedQuestion, ...]
    render: Callable[[int], Image.Image]

    def subject_of_box(self, box: BoxXYXY) -> Subject:
        """Return the subject with exactly this box."""
        for subject, part in self.parts.items():
            if part.box_xyxy == box:
                return subject
        raise ValueError(f"no part of picture {self.seed} has the box {box}")

    def subject_of_region(self, question: Question) -> Subject:
        """Return the subject in the question's region."""
        match question.parameters["region"]:
            case [float(left), float(top), float(right), float(bottom)]:
                return self.subject_of_box((left, top, right, bottom))
            case region:
                raise ValueError(f"region must be four numbers; given: {region!r}")

    def segmented_subject(self, question: Question) -> Subject:
        """Return the object to be segmented, named by a phrase or given by its box."""
        if "region" in question.parameters:
            return self.subject_of_region(question)
        phrase = question.parameters["phrase"]
        named = [subject for subject, part in self.parts.items() if part.name == phrase]
        return named[0]

    def ranked_subjects(self, asked: SpannedQuestion) -> list[Subject]:
        """Return the subjects of a text answer, in its order."""
        ranked = dict[Subject, None]()
        for span in asked.spans:
            ranked.update(dict.fromkeys(span.subjects))
        return list(ranked)
