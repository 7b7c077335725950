"""Answers in Florence-2's format: labels before their locations, polygons as pairs, a region's text
with its box.

Source: transformers, models/florence2/processing_florence2.py (the post-processor that parses
them).
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from export.scenes.geometry import box_xyxy, polygon_xy, quad_xy
from export.scenes.scene import CANVAS_PX, BoxXYXY, Scene
from export.scenes.truth import InstancesTruth, Question, TextRegionsTruth, TextTruth
from laboratory.training.data.mentions import (
    BOX_STEP,
    Mention,
    Piece,
    Subject,
    expected_boxes,
    quad_coordinates,
    segmented_subject,
    subject_of_box,
    subject_of_region,
    text_pieces,
    word_pieces,
)
from tasks.florence2.locations import NUM_BINS, location_token
from tasks.parsing import without_article

POLYGON_STEP = 4  # bins of the grid of a polygon's points


def answer_pieces(scene: Scene, question: Question, labels: Sequence[str]) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    match question.truth:
        case InstancesTruth():
            subject = segmented_subject(scene, question)
            pieces = []
            for point in polygon_xy(scene.objects[subject]):
                mention = Mention(subject, point_xy=point)
                pieces += [_location(position, POLYGON_STEP, mention) for position in point]
            return pieces
        case TextRegionsTruth():
            if (word := scene.word) is None:
                return []
            subject = subject_of_box(scene, word.box_xyxy)
            positions = chain.from_iterable(quad_xy(word.box_xyxy))
            pieces = list(word_pieces(word.text))
            for position, coordinate in zip(positions, quad_coordinates(), strict=True):
                mention = Mention(subject, coordinate=coordinate)
                pieces.append(_location(position, BOX_STEP, mention))
            return pieces
        case TextTruth() if question.task == "region_description":
            text = question.truth.text
            subject = subject_of_region(scene, question)
            if scene.word and text == scene.word.text:
                return [*word_pieces(text), *_box(scene.word.box_xyxy, subject)]
            box = box_xyxy(scene.objects[subject])
            return [Piece(text, Mention(subject)), *_box(box, subject)]
        case TextTruth():
            return list(text_pieces(scene, question))
        case _:
            return list(_detections(scene, question, labels))


def bin_position(position_px: float) -> float:
    """Return a position on the canvas in bins; whole numbers are bin centres."""
    return position_px * NUM_BINS / CANVAS_PX - 0.5


def _detections(scene: Scene, question: Question, labels: Sequence[str]) -> Iterator[Piece]:
    for found in expected_boxes(question, labels):
        subject = subject_of_box(scene, found.box_xyxy)
        # same label as in the prompt
        label = without_article(found.label) if "phrases" in question.parameters else found.label
        yield Piece(label, Mention(subject))
        yield from _box(found.box_xyxy, subject)


def _box(box: BoxXYXY, subject: Subject) -> Iterator[Piece]:
    for coordinate, position in enumerate(box):
        yield _location(position, BOX_STEP, Mention(subject, coordinate=coordinate))


def _location(position_px: float, step: int, mention: Mention) -> Piece:
    position = bin_position(position_px)
    return Piece(location_token(round(position / step) * step), mention, position, step)
