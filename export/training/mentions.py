"""An answer as pieces of text, each with what it is about: an object, the word, one of its characters, a coordinate.

Attention is supervised by it: whoever writes a token shall look at what the token is about. Knows no family.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from export.scenes.geometry import Point, box_xyxy, quad_xy
from export.scenes.scene import BoxXYXY, Scene
from export.scenes.truth import DetectionsTruth, LabelledBox, Question, TextTruth

WORD = 4  # objects are 0 to 3
Subject = int
_COUNT = re.compile(r"\b(?:one|two|three|four|[1-4])\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """What a piece is about: a subject, of a word the character, of a box the coordinate (x1 y1 x2 y2), or a point."""

    subject: Subject
    character: int | None = None
    coordinate: int | None = None
    point_xy: Point | None = None  # of an outline, px of the canvas


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an answer."""

    text: str
    mention: Mention | None = None
    position: float | None = None  # of a location token, in bins, before it is rounded
    step: int = 0  # of the grid of bins that it is rounded to


def subject_of_box(scene: Scene, box: BoxXYXY) -> Subject:
    """Return the object or word that has exactly this box."""
    boxes = [box_xyxy(drawn) for drawn in scene.objects]
    if box in boxes:
        return boxes.index(box)
    if scene.word is None or scene.word.box_xyxy != box:
        raise ValueError(f"nothing in scene {scene.seed} has the box {box}")
    return WORD


def subject_of_region(scene: Scene, question: Question) -> Subject:
    """Return what stands in the question's region."""
    match question.parameters["region"]:
        case [float(left), float(top), float(right), float(bottom)]:
            return subject_of_box(scene, (left, top, right, bottom))
        case region:
            raise ValueError(f"a region must be four numbers, not {region!r}")


def segmented_subject(scene: Scene, question: Question) -> Subject:
    """Return the object whose outline is asked for, by its name or by its box."""
    if "region" in question.parameters:
        return subject_of_region(scene, question)
    return [drawn.name for drawn in scene.objects].index(str(question.parameters["phrase"]))


def asked_boxes(question: Question, labels: Sequence[str]) -> Sequence[LabelledBox]:
    """Return the true boxes of a question, of `labels` only where there are any."""
    if not isinstance(question.truth, DetectionsTruth):
        raise ValueError(f"{question.name} has no boxes")
    return [box for box in question.truth.boxes if not labels or box.label in labels]


def word_pieces(text: str) -> Iterator[Piece]:
    """Yield a piece for each character of the word."""
    for index, character in enumerate(text):
        yield Piece(character, Mention(WORD, character=index))


def text_pieces(scene: Scene, question: Question) -> Iterator[Piece]:
    """Yield the pieces of an answer that is text only."""
    if not isinstance(question.truth, TextTruth):
        raise ValueError(f"{question.name} is not answered with text")
    text, subject = question.truth.text, _subject_of_question(scene, question)
    if subject is not None:
        yield Piece(text, Mention(subject))
    elif question.task == "captioning":
        yield from _caption_pieces(scene, text)
    elif question.name.endswith("count"):
        yield Piece(text, Mention(len(scene.objects) - 1) if scene.objects else None)
    elif scene.word and text == scene.word.text:
        yield from word_pieces(text)
    else:
        yield Piece(text)


def ranked_subjects(scene: Scene, question: Question, pieces: Sequence[Piece]) -> list[Subject]:
    """Return what the answer is about, in its order; of a caption and a count everything, left to right."""
    if question.task == "captioning" or question.name.endswith("count"):
        return [*range(len(scene.objects)), *([WORD] if scene.word and question.task == "captioning" else [])]
    return list(dict.fromkeys(piece.mention.subject for piece in pieces if piece.mention))


def quad_coordinates() -> tuple[int, ...]:
    """Return for x and y of each corner of a quad which coordinate of its box it is."""
    return tuple(coordinate for corner in quad_xy((0, 1, 2, 3)) for coordinate in map(int, corner))


def _subject_of_question(scene: Scene, question: Question) -> Subject | None:
    """Return the one object that a question in words is about."""
    asked = str(question.parameters.get("question", ""))
    for index, drawn in enumerate(scene.objects):
        is_colour = question.name.endswith("color") and asked.endswith(f"{drawn.shape}?")
        is_there = question.name.endswith("presence") and asked.endswith(f" {drawn.name}?")
        if is_colour or is_there:
            return index
    return None


def _caption_pieces(scene: Scene, text: str) -> Iterator[Piece]:
    """Yield a caption's pieces: the number, objects with their articles, `text`, the characters of the word."""
    names = "|".join(f"(?:an? )?(?:{drawn.size} )?{drawn.name}" for drawn in scene.objects)
    marks = [names, _COUNT.pattern if scene.objects else "", r"(?<=with )text$|^text$" if scene.word else ""]
    pattern = "|".join(mark for mark in marks if mark)
    end = 0
    sentence, _, word = text.partition(" The text says ")
    for match in re.finditer(pattern, sentence) if pattern else ():
        yield from (Piece(sentence[end : match.start()]), Piece(match[0], _caption_mention(scene, match[0])))
        end = match.end()
    yield Piece(sentence[end:])
    if word:
        yield from (Piece(" The text says "), *word_pieces(word.removesuffix(".")), Piece("."))


def _caption_mention(scene: Scene, text: str) -> Mention:
    if text == "text":
        return Mention(WORD)
    named = [index for index, drawn in enumerate(scene.objects) if text.endswith(drawn.name)]
    return Mention(named[0] if named else len(scene.objects) - 1)
