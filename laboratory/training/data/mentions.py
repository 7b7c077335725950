"""Answers as pieces of text, each with the part of the picture that it mentions.

The mentions supervise attention: a token's writer (the decoder position that predicts it) should
attend to the cells of the mentioned object, line, character or point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from diptych_client.matching import LabelledBox
from export.scenes import Point, quad_xy
from laboratory.questions import DetectionsTruth, Question
from laboratory.training.data.pictures import FIRST_LINE, Picture, SpannedQuestion, Subject

BOX_STEP = 8  # bins of a box's grid: 1.5 px of the 192 of the canvas


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


def expected_boxes(question: Question, labels: Sequence[str]) -> Sequence[LabelledBox]:
    """Return the true boxes of a question; if `labels` is not empty, only theirs."""
    if not isinstance(question.truth, DetectionsTruth):
        raise ValueError(f"the answer to {question.name} has no boxes")
    return [box for box in question.truth.boxes if not labels or box.label in labels]


def line_pieces(picture: Picture, subject: Subject) -> Iterator[Piece]:
    """Yield a piece for each character of a line."""
    for index, character in enumerate(picture.parts[subject].name):
        yield Piece(character, Mention(subject, character=index))


def text_pieces(picture: Picture, asked: SpannedQuestion) -> Iterator[Piece]:
    """Yield the pieces of a plain text answer; a span of several subjects mentions the last."""
    for span in asked.spans:
        subject = span.subjects[-1] if span.subjects else None
        if subject is None:
            yield Piece(span.text)
        elif subject >= FIRST_LINE and span.text == picture.parts[subject].name:
            yield from line_pieces(picture, subject)
        else:
            yield Piece(span.text, Mention(subject))


def ranked_subjects(
    picture: Picture, asked: SpannedQuestion, pieces: Sequence[Piece]
) -> list[Subject]:
    """Return the subjects of an answer, in its order."""
    if asked.spans:
        return picture.ranked_subjects(asked)
    return list(dict.fromkeys(piece.mention.subject for piece in pieces if piece.mention))


def quad_coordinates() -> tuple[int, ...]:
    """Return the coordinate of the box for x and y of each corner of its quad."""
    return tuple(map(int, chain.from_iterable(quad_xy((0, 1, 2, 3)))))
