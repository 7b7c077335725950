"""Answers in PaliGemma's format: locations (y before x) before their label, joined by ` ; `, masks
as 16 codes.

Source: google-research/big_vision, big_vision/pp/proj/paligemma/segmentation.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from export.scenes.geometry import box_xyxy
from export.scenes.scene import CANVAS_PX, BoxXYXY, Scene
from export.scenes.truth import InstancesTruth, Question, TextTruth
from laboratory.training.data.mentions import (
    BOX_STEP,
    Mention,
    Piece,
    Subject,
    expected_boxes,
    subject_of_box,
    text_pieces,
)
from tasks.paligemma.locations import NUM_BINS, location_token

_Y1_X1_Y2_X2 = (1, 0, 3, 2)


@dataclass(frozen=True, slots=True)
class PaliGemmaAnswers:
    """Writes answers; masks are the codes of their shape."""

    shape_codes: Mapping[str, tuple[int, ...]]

    def answer_pieces(self, scene: Scene, question: Question, labels: Sequence[str]) -> list[Piece]:
        """Return the true answer to a question, or to its prompt with these `labels`."""
        match question.truth:
            case InstancesTruth():
                phrase = str(question.parameters["phrase"])
                subject = [drawn.name for drawn in scene.objects].index(phrase)
                codes = self.shape_codes[scene.objects[subject].shape]
                texts = [*(f"<seg{code:03d}>" for code in codes), f" {phrase}"]
                mention = Mention(subject)
                box = _box(box_xyxy(scene.objects[subject]), subject)
                return [*box, *(Piece(text, mention) for text in texts)]
            case TextTruth():
                return list(text_pieces(scene, question))
            case _:
                return list(_detections(scene, question, labels))


def bin_position(position_px: float) -> float:
    """Return a position on the canvas in bins."""
    return position_px * (NUM_BINS - 1) / CANVAS_PX


def _detections(scene: Scene, question: Question, labels: Sequence[str]) -> Iterator[Piece]:
    for index, found in enumerate(expected_boxes(question, labels)):
        subject = subject_of_box(scene, found.box_xyxy)
        if index:
            yield Piece(" ; ")
        yield from _box(found.box_xyxy, subject)
        yield Piece(f" {found.label}", Mention(subject))


def _box(box: BoxXYXY, subject: Subject) -> Iterator[Piece]:
    for coordinate in _Y1_X1_Y2_X2:
        position = bin_position(box[coordinate])
        token = location_token(round(position / BOX_STEP) * BOX_STEP)
        yield Piece(token, Mention(subject, coordinate=coordinate), position, BOX_STEP)
