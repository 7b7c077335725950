"""A scene as training reads it: its parts, and the questions about it with the parts that each
answer mentions.

A subject is an object, by its index, or the word, `WORD`. Scenes depend only on their seeds, so
that a resumed run equals an uninterrupted one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import ascii_uppercase, digits

import numpy as np
from numpy.random import default_rng

from export.scenes import (
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    BoxXYXY,
    Scene,
    SceneObject,
    Word,
    box_xyxy,
    load_font,
    sample_scene,
)
from laboratory.questions import Question, TextTruth, questions

WORD = MAX_OBJECTS
NUM_SUBJECTS = WORD + 1
NUM_CLASSES = {"color": len(COLORS), "shape": len(SHAPES), "size": len(SIZES), "brightness": 2}
CHARACTERS = ascii_uppercase + digits
WORD_SHARE = 0.65
_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # scenes with 0 to 4 shapes
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)
_COUNT = r"\b(?:one|two|three|four|[1-4])\b"


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
    """An object or the word of a picture, in pixels of the canvas."""

    name: str  # an object's name in phrases; the word's text
    box_xyxy: BoxXYXY
    drawn: SceneObject | None = None
    characters: tuple[BoxXYXY, ...] = ()  # boxes of the word's


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene with its parts and questions."""

    scene: Scene
    parts: Mapping[int, Part]
    questions: tuple[SpannedQuestion, ...]

    def subject_of_box(self, box: object) -> int:
        """Return the subject with exactly this box."""
        for subject, part in self.parts.items():
            if list(part.box_xyxy) == box:
                return subject
        raise ValueError(f"no part of scene {self.scene.seed} has the box {box}")

    def segmented_subject(self, question: Question) -> int:
        """Return the object to be segmented, named by a phrase or given by its box."""
        if "region" in question.parameters:
            return self.subject_of_box(question.parameters["region"])
        names = [part.name for part in self.parts.values()]
        return names.index(str(question.parameters["phrase"]))


def sample_picture(seed: int, difficulty: float = 1.0, word_share: float = WORD_SHARE) -> Picture:
    """Return the picture of a seed; `difficulty` 0 means few objects, 1 mostly many."""
    rng = default_rng((seed, 1))
    easy = np.array(_EASY_SHARES) * (1 - difficulty)
    shares = np.array(_FULL_SHARES) * difficulty + easy
    num_objects = int(rng.choice(len(shares), p=shares / shares.sum()))
    return picture_of(sample_scene(seed, num_objects, bool(rng.random() < word_share)))


def picture_of(scene: Scene) -> Picture:
    """Return the picture of a scene."""
    parts = {}
    for index, drawn in enumerate(scene.objects):
        parts[index] = Part(drawn.name, box_xyxy(drawn), drawn)
    if scene.word is not None:
        parts[WORD] = _word_part(scene.word)
    spanned = []
    for question in questions(scene):
        spanned.append(SpannedQuestion(question, tuple(answer_spans(scene, question))))
    return Picture(scene, parts, tuple(spanned))


def _word_part(word: Word) -> Part:
    """Return the word with the characters' edges, from the advances of the font."""
    font = load_font(word.font_face, word.font_size_px)
    left, top, right, bottom = word.box_xyxy
    scale = (right - left) / font.getlength(word.text)
    edges = [left + scale * font.getlength(word.text[:index]) for index in range(len(word.text))]
    edges.append(right)
    boxes = tuple((edges[i], top, edges[i + 1], bottom) for i in range(len(word.text)))
    return Part(word.text, word.box_xyxy, characters=boxes)


def answer_spans(scene: Scene, question: Question) -> Iterator[Span]:
    """Yield the spans of a text answer."""
    if not isinstance(question.truth, TextTruth):
        return
    text = question.truth.text
    every_object = tuple(range(len(scene.objects)))
    if question.task == "captioning":
        yield from _caption_spans(scene, text)
    elif question.name.endswith("count"):
        yield Span(text, every_object)
    elif scene.word and text == scene.word.text:
        yield Span(text, (WORD,))
    else:
        region = question.parameters.get("region")
        wording = str(question.parameters.get("question", ""))
        for index, drawn in enumerate(scene.objects):
            is_named = wording.endswith((f" {drawn.name}?", f" the {drawn.shape}?"))
            if is_named or list(box_xyxy(drawn)) == region:
                yield Span(text, (index,))
                return
        yield Span(text)


def _caption_spans(scene: Scene, text: str) -> Iterator[Span]:
    """Yield the spans of a caption: count, objects with articles, `text`, the word."""
    patterns = [f"(?:an? )?(?:{drawn.size} )?{drawn.name}" for drawn in scene.objects]
    if scene.objects:
        patterns.append(_COUNT)
    if scene.word:
        patterns.append(r"(?<=with )text$|^text$")
    sentence, _, word = text.partition(" The text says ")
    end = 0
    for match in re.finditer("|".join(patterns), sentence) if patterns else ():
        yield Span(sentence[end : match.start()])
        yield Span(match[0], _mentioned_by(scene, match[0]))
        end = match.end()
    yield Span(sentence[end:])
    if word:
        yield Span(" The text says ")
        yield Span(word.removesuffix("."), (WORD,))
        yield Span(".")


def _mentioned_by(scene: Scene, phrase: str) -> tuple[int, ...]:
    """Return the object that a phrase names, the word, or for a count all objects."""
    for index, drawn in enumerate(scene.objects):
        if phrase.endswith(drawn.name):
            return (index,)
    return (WORD,) if phrase == "text" else tuple(range(len(scene.objects)))
