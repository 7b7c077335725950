"""Answers in PaliGemma's format: locations (y before x) before their label, joined by ` ; `, masks
as 16 codes.

Source: google-research/big_vision, big_vision/pp/proj/paligemma/segmentation.py.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from export.scenes import CANVAS_PX, BoxXYXY
from laboratory.questions import InstancesTruth, Question, TextTruth
from laboratory.training.data.mask_samples import Masks
from laboratory.training.data.mentions import (
    BOX_STEP,
    Mention,
    Piece,
    expected_boxes,
    text_pieces,
)
from laboratory.training.data.pictures import Picture, SpannedQuestion, Subject
from tasks.paligemma.locations import NUM_BINS, location_token

_Y1_X1_Y2_X2 = (1, 0, 3, 2)
_LAST = (NUM_BINS - 1) // BOX_STEP * BOX_STEP


@dataclass(frozen=True, slots=True)
class PaliGemmaAnswers:
    """Writes answers with the codes of masks (64, 64)."""

    encode_mask: Callable[[Masks], tuple[int, ...]]

    def answer_pieces(
        self, picture: Picture, asked: SpannedQuestion, labels: Sequence[str]
    ) -> list[Piece]:
        """Return the true answer to a question, or to its prompt with these `labels`."""
        question = asked.question
        match question.truth:
            case InstancesTruth():
                phrase = str(question.parameters["phrase"])
                subject = picture.segmented_subject(question)
                part = picture.parts[subject]
                codes = self.encode_mask(part.mask()) if part.mask else ()
                texts = [*(f"<seg{code:03d}>" for code in codes), f" {phrase}"]
                mention = Mention(subject)
                box = _box(part.box_xyxy, subject)
                return [*box, *(Piece(text, mention) for text in texts)]
            case TextTruth():
                return list(text_pieces(picture, asked))
            case _:
                return list(_detections(picture, question, labels))


def bin_position(position_px: float) -> float:
    """Return a position on the canvas in bins."""
    return position_px * (NUM_BINS - 1) / CANVAS_PX


def _detections(picture: Picture, question: Question, labels: Sequence[str]) -> Iterator[Piece]:
    for index, found in enumerate(expected_boxes(question, labels)):
        subject = picture.subject_of_box(found.box_xyxy)
        if index:
            yield Piece(" ; ")
        yield from _box(found.box_xyxy, subject)
        yield Piece(f" {found.label}", Mention(subject))


def _box(box: BoxXYXY, subject: Subject) -> Iterator[Piece]:
    for coordinate in _Y1_X1_Y2_X2:
        position = bin_position(box[coordinate])
        number = min(_LAST, max(0, round(position / BOX_STEP) * BOX_STEP))
        yield Piece(
            location_token(number), Mention(subject, coordinate=coordinate), position, BOX_STEP
        )
