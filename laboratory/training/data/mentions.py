"""Answers as pieces of text, each with the part of the scene that it mentions.

The mentions supervise attention: a token's writer (the decoder position that predicts it) should
attend to the cells of the mentioned object, word, character or point.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from export.scenes.geometry import Point, box_xyxy, quad_xy
from export.scenes.scene import BoxXYXY, Scene
from export.scenes.truth import DetectionsTruth, LabelledBox, Question, TextTruth

Subject = int  # 0 to 3: objects, left to right; WORD
WORD: Subject = 4
BOX_STEP = 8  # bins of a box's grid: 1.5 px of the 192 that the model sees
_COUNT = re.compile(r"\b(?:one|two|three|four|[1-4])\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """A subject, and optionally a character, a box coordinate (x1 y1 x2 y2) or a point."""

    subject: Subject
    character: int | None = None
    coordinate: int | None = None
    point_xy: Point | None = None  # outline's point, px of the canvas


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer's text."""

    text: str
    mention: Mention | None = None
    position: float | None = None  # location token's value in bins, before rounding
    step: int = 0  # bins between the values that the position is rounded to


def subject_of_box(scene: Scene, box: BoxXYXY) -> Subject:
    """Return the object or word with exactly this box."""
    boxes = [box_xyxy(drawn) for drawn in scene.objects]
    if box in boxes:
        return boxes.index(box)
    if scene.word is None or scene.word.box_xyxy != box:
        raise ValueError(f"no object or word of scene {scene.seed} has the box {box}")
    return WORD


def subject_of_region(scene: Scene, question: Question) -> Subject:
    """Return the object or word in the question's region."""
    match question.parameters["region"]:
        case [float(left), float(top), float(right), float(bottom)]:
            return subject_of_box(scene, (left, top, right, bottom))
        case region:
            raise ValueError(f"region must be four numbers; given: {region!r}")


def segmented_subject(scene: Scene, question: Question) -> Subject:
    """Return the object to be segmented, named by a phrase or given by its box."""
    if "region" in question.parameters:
        return subject_of_region(scene, question)
    return [drawn.name for drawn in scene.objects].index(str(question.parameters["phrase"]))


def expected_boxes(question: Question, labels: Sequence[str]) -> Sequence[LabelledBox]:
    """Return the true boxes of a question; if `labels` is not empty, only theirs."""
    if not isinstance(question.truth, DetectionsTruth):
        raise ValueError(f"the answer to {question.name} has no boxes")
    return [box for box in question.truth.boxes if not labels or box.label in labels]


def word_pieces(text: str) -> Iterator[Piece]:
    """Yield a piece for each character of the word."""
    for index, character in enumerate(text):
        yield Piece(character, Mention(WORD, character=index))


def text_pieces(scene: Scene, question: Question) -> Iterator[Piece]:
    """Yield the pieces of a plain text answer."""
    if not isinstance(question.truth, TextTruth):
        raise ValueError(f"the answer to {question.name} is not text")
    text = question.truth.text
    asked = str(question.parameters.get("question", ""))
    for index, drawn in enumerate(scene.objects):
        is_colour = question.name.endswith("color") and asked.endswith(f"{drawn.shape}?")
        is_there = question.name.endswith("presence") and asked.endswith(f" {drawn.name}?")
        if is_colour or is_there:
            yield Piece(text, Mention(index))
            return
    if question.task == "captioning":
        yield from _caption_pieces(scene, text)
    elif question.name.endswith("count"):
        yield Piece(text, Mention(len(scene.objects) - 1) if scene.objects else None)
    elif scene.word and text == scene.word.text:
        yield from word_pieces(text)
    else:
        yield Piece(text)


def ranked_subjects(scene: Scene, question: Question, pieces: Sequence[Piece]) -> list[Subject]:
    """Return the subjects of an answer, in its order.

    Those of a caption or a count are all, left to right.
    """
    if question.task == "captioning" or question.name.endswith("count"):
        return [
            *range(len(scene.objects)),
            *([WORD] if scene.word and question.task == "captioning" else []),
        ]
    return list(dict.fromkeys(piece.mention.subject for piece in pieces if piece.mention))


def quad_coordinates() -> tuple[int, ...]:
    """Return the coordinate of the box for x and y of each corner of its quad."""
    return tuple(map(int, chain.from_iterable(quad_xy((0, 1, 2, 3)))))


def _caption_pieces(scene: Scene, text: str) -> Iterator[Piece]:
    """Yield the pieces of a caption: count, objects with articles, `text`, the word."""
    names = "|".join(f"(?:an? )?(?:{drawn.size} )?{drawn.name}" for drawn in scene.objects)
    marks = [
        names,
        _COUNT.pattern if scene.objects else "",
        r"(?<=with )text$|^text$" if scene.word else "",
    ]
    pattern = "|".join(mark for mark in marks if mark)
    end = 0
    sentence, _, word = text.partition(" The text says ")
    for match in re.finditer(pattern, sentence) if pattern else ():
        named = [
            index for index, drawn in enumerate(scene.objects) if match[0].endswith(drawn.name)
        ]
        subject = named[0] if named else len(scene.objects) - 1
        yield Piece(sentence[end : match.start()])
        yield Piece(match[0], Mention(WORD if match[0] == "text" else subject))
        end = match.end()
    yield Piece(sentence[end:])
    if word:
        yield from (Piece(" The text says "), *word_pieces(word.removesuffix(".")), Piece("."))
