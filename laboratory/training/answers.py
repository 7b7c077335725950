"""True answers in each family's format, as pieces of text with the part of the picture that each
mentions.

The mentions supervise attention: a token's writer (the decoder position that predicts it) should
attend to the cells of the mentioned object, word, character or point.

Sources of the formats: transformers, models/florence2/processing_florence2.py (labels before their
locations, polygons as pairs); google-research/big_vision, big_vision/pp/proj/paligemma/
segmentation.py (locations, y before x, before their label; masks as 16 codes).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from diptych_client.matching import LabelledBox
from export.scenes import CANVAS_PX, BoxXYXY, Point, Shape, polygon_xy, quad_xy
from laboratory.questions import (
    DetectionsTruth,
    InstancesTruth,
    TextRegionsTruth,
    TextTruth,
)
from laboratory.training.pictures import WORD, Picture, SpannedQuestion
from tasks.florence2 import grammar as florence2_grammar
from tasks.paligemma import grammar as paligemma_grammar
from tasks.parsing import without_article

BOX_STEP = 8  # bins of a box's grid: 1.5 px of the 192 of the canvas
_POLYGON_STEP = 4  # bins of the grid of a polygon's points
_Y1_X1_Y2_X2 = (1, 0, 3, 2)


@dataclass(frozen=True, slots=True)
class Mention:
    """A subject, and optionally a character, a box coordinate (x1 y1 x2 y2) or a point."""

    subject: int
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


# of a picture, a question, and the labels of one of its prompts
WriteAnswer = Callable[[Picture, SpannedQuestion, Sequence[str]], list[Piece]]
EncodeShape = Callable[[Shape], Sequence[int]]  # the codes of its mask


def florence2_answer(
    picture: Picture, spanned: SpannedQuestion, labels: Sequence[str]
) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    question = spanned.question
    pieces = list[Piece]()
    match question.truth:
        case InstancesTruth():
            subject = picture.segmented_subject(question)
            drawn = picture.parts[subject].drawn
            assert drawn is not None
            for point in polygon_xy(drawn):
                mention = Mention(subject, point_xy=point)
                pieces += [_florence2_location(px, _POLYGON_STEP, mention) for px in point]
        case TextRegionsTruth():
            if WORD in picture.parts:
                pieces += _characters(picture)
                corners = chain.from_iterable(quad_xy(picture.parts[WORD].box_xyxy))
                for px, coordinate in zip(corners, quad_coordinates(), strict=True):
                    mention = Mention(WORD, coordinate=coordinate)
                    pieces.append(_florence2_location(px, BOX_STEP, mention))
        case TextTruth():
            pieces += _text(picture, spanned)
            if question.task == "region_description":
                subject = picture.subject_of_box(question.parameters["region"])
                pieces += _florence2_box(picture.parts[subject].box_xyxy, subject)
        case DetectionsTruth(boxes):
            has_phrases = "phrases" in question.parameters
            for box in _expected(boxes, labels):
                subject = picture.subject_of_box(list(box.box_xyxy))
                # same label as in the prompt
                label = without_article(box.label) if has_phrases else box.label
                pieces.append(Piece(label, Mention(subject)))
                pieces += _florence2_box(box.box_xyxy, subject)
    return pieces


def paligemma_answer(
    encode_shape: EncodeShape, picture: Picture, spanned: SpannedQuestion, labels: Sequence[str]
) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    question = spanned.question
    pieces = list[Piece]()
    match question.truth:
        case InstancesTruth():
            subject = picture.segmented_subject(question)
            part = picture.parts[subject]
            assert part.drawn is not None
            pieces += _paligemma_box(part.box_xyxy, subject)
            codes = [f"<seg{code:03d}>" for code in encode_shape(part.drawn.shape)]
            for text in (*codes, f" {question.parameters['phrase']}"):
                pieces.append(Piece(text, Mention(subject)))
        case TextTruth():
            pieces += _text(picture, spanned)
        case DetectionsTruth(boxes):
            for box in _expected(boxes, labels):
                subject = picture.subject_of_box(list(box.box_xyxy))
                if pieces:
                    pieces.append(Piece(" ; "))
                pieces += _paligemma_box(box.box_xyxy, subject)
                pieces.append(Piece(f" {box.label}", Mention(subject)))
        case _:
            raise ValueError(f"PaliGemma is not asked {question.name}")
    return pieces


def ranked_subjects(spanned: SpannedQuestion, pieces: Sequence[Piece]) -> list[int]:
    """Return the subjects of an answer, in its order."""
    ranked = dict[int, None]()
    for span in spanned.spans:
        ranked.update(dict.fromkeys(span.subjects))
    if not spanned.spans:
        ranked.update(dict.fromkeys(piece.mention.subject for piece in pieces if piece.mention))
    return list(ranked)


def quad_coordinates() -> tuple[int, ...]:
    """Return the coordinate of the box for x and y of each corner of its quad."""
    return tuple(map(int, chain.from_iterable(quad_xy((0, 1, 2, 3)))))


def _expected(boxes: Sequence[LabelledBox], labels: Sequence[str]) -> list[LabelledBox]:
    """Return the true boxes; if `labels` is not empty, only theirs."""
    return [box for box in boxes if not labels or box.label in labels]


def _text(picture: Picture, spanned: SpannedQuestion) -> Iterator[Piece]:
    """Yield the pieces of a plain text answer; a span of several subjects mentions the last."""
    for span in spanned.spans:
        if not span.subjects:
            yield Piece(span.text)
        elif span.subjects == (WORD,) and span.text == picture.parts[WORD].name:
            yield from _characters(picture)
        else:
            yield Piece(span.text, Mention(span.subjects[-1]))


def _characters(picture: Picture) -> Iterator[Piece]:
    for index, character in enumerate(picture.parts[WORD].name):
        yield Piece(character, Mention(WORD, character=index))


def _florence2_box(box: BoxXYXY, subject: int) -> Iterator[Piece]:
    for coordinate, px in enumerate(box):
        yield _florence2_location(px, BOX_STEP, Mention(subject, coordinate=coordinate))


def _florence2_location(px: float, step: int, mention: Mention) -> Piece:
    position = px * florence2_grammar.NUM_BINS / CANVAS_PX - 0.5  # whole at bin centres
    number = _rounded(position, step, florence2_grammar.NUM_BINS)
    return Piece(florence2_grammar.location_token(number), mention, position, step)


def _paligemma_box(box: BoxXYXY, subject: int) -> Iterator[Piece]:
    for coordinate in _Y1_X1_Y2_X2:
        position = box[coordinate] * (paligemma_grammar.NUM_BINS - 1) / CANVAS_PX
        number = _rounded(position, BOX_STEP, paligemma_grammar.NUM_BINS)
        mention = Mention(subject, coordinate=coordinate)
        yield Piece(paligemma_grammar.location_token(number), mention, position, BOX_STEP)


def _rounded(position: float, step: int, num_bins: int) -> int:
    """Return the nearest multiple of `step` that is a bin."""
    last = (num_bins - 1) // step * step
    return min(last, max(0, round(position / step) * step))
