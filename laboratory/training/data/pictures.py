"""A scene of either world as training reads it: subjects, questions and an image.

A subject is an object, by its index, or a line of text, by `FIRST_LINE` plus its index.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from export.scenes.geometry import Ring
from export.scenes.scene import COLORS, SHAPES, SIZES, BoxXYXY
from export.scenes.truth import Question
from laboratory.things.catalogue import INDEX_OF, THINGS
from laboratory.things.questions import FIRST_LINE, Span, SpannedQuestion
from laboratory.things.wording import ALPHABETS, MAX_LINES
from laboratory.training.data.mask_samples import Masks

Subject = int
NUM_SUBJECTS = FIRST_LINE + MAX_LINES
NUM_CLASSES = {
    "color": len(COLORS),
    "thing": len(SHAPES) + len(THINGS),
    "size": len(SIZES),
    "brightness": 2,
}
_LETTERS = "".join(ALPHABETS.values())
CHARACTERS = tuple(
    sorted({*map(chr, range(32, 127)), *_LETTERS, *(c for c in _LETTERS.upper() if c.isalpha())})
)


def thing_class(name: str) -> int:
    """Return the class of a shape or a thing."""
    shapes = [str(shape) for shape in SHAPES]
    return shapes.index(name) if name in shapes else len(SHAPES) + INDEX_OF[name]


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


__all__ = ["CHARACTERS", "FIRST_LINE", "Part", "Picture", "Span", "SpannedQuestion", "Subject"]
