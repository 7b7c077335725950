"""Answers in Florence-2's format: labels before their locations, polygons as pairs, a region's text
with its box.

Source: transformers, models/florence2/processing_florence2.py (the post-processor that parses
them).
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from export.scenes import CANVAS_PX, BoxXYXY
from laboratory.questions import InstancesTruth, Question, TextRegionsTruth, TextTruth
from laboratory.training.data.mentions import (
    BOX_STEP,
    Mention,
    Piece,
    expected_boxes,
    line_pieces,
    quad_coordinates,
    text_pieces,
)
from laboratory.training.data.pictures import FIRST_LINE, Picture, SpannedQuestion, Subject
from tasks.florence2.locations import NUM_BINS, location_token
from tasks.parsing import without_article

POLYGON_STEP = 4  # bins of the grid of a polygon's points


def answer_pieces(picture: Picture, asked: SpannedQuestion, labels: Sequence[str]) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    question = asked.question
    match question.truth:
        case InstancesTruth():
            subject = picture.segmented_subject(question)
            pieces = []
            for point in picture.parts[subject].polygon_xy():
                mention = Mention(subject, point_xy=point)
                pieces += [_location(position, POLYGON_STEP, mention) for position in point]
            return pieces
        case TextRegionsTruth():
            return list(_text_regions(picture))
        case TextTruth() if question.task == "region_description":
            subject = picture.subject_of_region(question)
            box = picture.parts[subject].box_xyxy
            return [*text_pieces(picture, asked), *_box(box, subject)]
        case TextTruth():
            return list(text_pieces(picture, asked))
        case _:
            return list(_detections(picture, question, labels))


def bin_position(position_px: float) -> float:
    """Return a position on the canvas in bins; whole numbers are bin centres."""
    return position_px * NUM_BINS / CANVAS_PX - 0.5


def _text_regions(picture: Picture) -> Iterator[Piece]:
    for subject, part in picture.parts.items():
        if subject < FIRST_LINE:
            continue
        yield from line_pieces(picture, subject)
        positions = chain.from_iterable(part.quad_xy)
        for position, coordinate in zip(positions, quad_coordinates(), strict=True):
            yield _location(position, BOX_STEP, Mention(subject, coordinate=coordinate))


def _detections(picture: Picture, question: Question, labels: Sequence[str]) -> Iterator[Piece]:
    for found in expected_boxes(question, labels):
        subject = picture.subject_of_box(found.box_xyxy)
        # same label as in the prompt
        label = without_article(found.label) if "phrases" in question.parameters else found.label
        yield Piece(label, Mention(subject))
        yield from _box(found.box_xyxy, subject)


def _box(box: BoxXYXY, subject: Subject) -> Iterator[Piece]:
    for coordinate, position in enumerate(box):
        yield _location(position, BOX_STEP, Mention(subject, coordinate=coordinate))


def _location(position_px: float, step: int, mention: Mention) -> Piece:
    last = (NUM_BINS - 1) // step * step
    position = bin_position(position_px)
    number = min(last, max(0, round(position / step) * step))
    return Piece(location_token(number), mention, position, step)
