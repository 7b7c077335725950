"""The questions about a scene and their true answers in each family's format, in pieces with the
subjects that each mentions.

A subject is an object, by its index, or the word, `WORD`. Mentions supervise attention: a token's
writer (the decoder position that predicts it) should attend to the cells of the mentioned object,
word, character or point.

Sources of the formats: transformers, models/florence2/processing_florence2.py (labels before their
locations, polygons as pairs); google-research/big_vision, big_vision/pp/proj/paligemma/
segmentation.py (locations, y before x, before their label; masks as 16 codes).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from string import ascii_uppercase, digits

import numpy as np
from numpy.random import default_rng

from diptych_client.geometry import corners
from diptych_client.results import (
    Detection,
    DetectionsResult,
    InstancesResult,
    TextRegionsResult,
    TextResult,
)
from export.scenes import (
    CANVAS_PX,
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    BoxXYXY,
    Point,
    Scene,
    Shape,
    Word,
    box_xyxy,
    load_font,
    polygon_xy,
    sample_scene,
)
from laboratory.questions import Question, questions
from tasks.florence2 import grammar as florence2_grammar
from tasks.paligemma import grammar as paligemma_grammar
from tasks.parsing import without_article

WORD = MAX_OBJECTS
NUM_SUBJECTS = WORD + 1
CHARACTERS = ascii_uppercase + digits
WORD_SHARE = 0.65
BOX_STEP = 8  # bins of a box's grid: 1.5 px of the 192 of the canvas
_POLYGON_STEP = 4  # bins of the grid of a polygon's points
_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # scenes with 0 to 4 shapes
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)
# Codes of each shape's mask in its box, by the autoencoder of models/paligemma-mini/vae.npz, which
# laboratory/training/masks.py of commit 9e3ef58f trained.
_MASK_CODES: dict[Shape, tuple[int, ...]] = {
    "circle": (13, 20, 55, 105, 20, 26, 38, 56, 114, 38, 38, 71, 113, 46, 118, 33),
    "square": (84, 99, 99, 35, 73, 38, 38, 87, 73, 38, 38, 87, 117, 43, 43, 87),
    "triangle": (122, 110, 5, 76, 44, 29, 81, 126, 40, 28, 121, 36, 29, 43, 43, 18),
    "star": (122, 110, 115, 76, 34, 82, 18, 91, 67, 0, 103, 120, 45, 69, 3, 8),
}
# what a caption mentions: an object, the number of all, the word
_PHRASES = re.compile(
    rf"(?:an? )?(?:(?:{'|'.join(SIZES)}) )?(?:{'|'.join(COLORS)}) (?:{'|'.join(SHAPES)})"
    r"|\b(?:one|two|three|four)\b|(?<=with )text$|^text$"
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A scene with its questions, and the boxes of its subjects, in pixels of the canvas."""

    scene: Scene
    boxes: Mapping[int, BoxXYXY]  # by subject
    character_boxes: tuple[BoxXYXY, ...]  # of the word
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        return self.scene.word.text if self.scene.word else ""

    def subject_of_box(self, box: Sequence[float]) -> int:
        """Return the subject with exactly this box."""
        boxes = list(map(list, self.boxes.values()))
        return list(self.boxes)[boxes.index(list(box))]

    def segmented(self, question: Question) -> int:
        """Return the object to be segmented, named by a phrase or given by its box."""
        if "region" in question.parameters:
            return self.subject_of_box(question.parameters["region"])
        names = [drawn.name for drawn in self.scene.objects]
        return names.index(str(question.parameters["phrase"]))


def sample_picture(seed: int, difficulty: float = 1.0, word_share: float = WORD_SHARE) -> Picture:
    """Return the picture of a seed; `difficulty` 0 means few objects, 1 mostly many."""
    rng = default_rng((seed, 1))
    easy = np.array(_EASY_SHARES) * (1 - difficulty)
    shares = np.array(_FULL_SHARES) * difficulty + easy
    num_objects = int(rng.choice(len(shares), p=shares / shares.sum()))
    return picture_of(sample_scene(seed, num_objects, bool(rng.random() < word_share)))


def picture_of(scene: Scene) -> Picture:
    boxes = dict(enumerate(map(box_xyxy, scene.objects)))
    if scene.word is not None:
        boxes[WORD] = scene.word.box_xyxy
    return Picture(scene, boxes, _character_boxes(scene.word), tuple(questions(scene)))


def _character_boxes(word: Word | None) -> tuple[BoxXYXY, ...]:
    """Return the boxes of a word's characters, from the advances of the font."""
    if word is None:
        return ()
    font = load_font(word.font_face, word.font_size_px)
    left, top, right, bottom = word.box_xyxy
    scale = (right - left) / font.getlength(word.text)
    boxes = []
    start = left
    for index in range(1, len(word.text) + 1):
        end = left + scale * font.getlength(word.text[:index])
        boxes.append((start, top, end, bottom))
        start = end
    return tuple(boxes)


@dataclass(frozen=True, slots=True)
class Mention:
    """Subjects, the last of which is attended to, and optionally a part of it."""

    subjects: tuple[int, ...]
    character: int | None = None
    coordinate: int | None = None  # of the box: x1 y1 x2 y2
    point_xy: Point | None = None  # outline's point, px of the canvas


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer's text."""

    text: str
    mention: Mention | None = None
    position: float | None = None  # location token's value in bins, before rounding
    step: int = 0  # bins between the values that the position is rounded to


def florence2_answer(picture: Picture, question: Question, labels: Sequence[str]) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    pieces = list[Piece]()
    match question.truth:
        case InstancesResult():
            subject = picture.segmented(question)
            for point in polygon_xy(picture.scene.objects[subject]):
                mention = Mention((subject,), point_xy=point)
                pieces += [_florence2_location(px, _POLYGON_STEP, mention) for px in point]
        case TextRegionsResult() if WORD in picture.boxes:
            pieces += _characters(picture)
            places = chain.from_iterable(corners(picture.boxes[WORD]))
            coordinates = chain.from_iterable(corners((0, 1, 2, 3)))
            for px, coordinate in zip(places, map(int, coordinates), strict=True):
                mention = Mention((WORD,), coordinate=coordinate)
                pieces.append(_florence2_location(px, BOX_STEP, mention))
        case TextResult(text):
            pieces += _text(picture, question, text)
            if question.task == "region_description":
                subject = picture.subject_of_box(question.parameters["region"])
                pieces += _florence2_box(picture.boxes[subject], subject)
        case DetectionsResult(boxes):
            has_phrases = "phrases" in question.parameters
            for box in _expected(boxes, labels):
                subject = picture.subject_of_box(box.box_xyxy)
                # same label as in the prompt
                label = without_article(box.label) if has_phrases else box.label
                pieces.append(Piece(label, Mention((subject,))))
                pieces += _florence2_box(box.box_xyxy, subject)
    return pieces


def paligemma_answer(picture: Picture, question: Question, labels: Sequence[str]) -> list[Piece]:
    """Return the true answer to a question, or to its prompt with these `labels`."""
    pieces = list[Piece]()
    match question.truth:
        case InstancesResult():
            subject = picture.segmented(question)
            pieces += _paligemma_box(picture.boxes[subject], subject)
            for code in _MASK_CODES[picture.scene.objects[subject].shape]:
                pieces.append(Piece(f"<seg{code:03d}>", Mention((subject,))))
            pieces.append(Piece(f" {question.parameters['phrase']}", Mention((subject,))))
        case TextResult(text):
            pieces += _text(picture, question, text)
        case DetectionsResult(boxes):
            for box in _expected(boxes, labels):
                subject = picture.subject_of_box(box.box_xyxy)
                if pieces:
                    pieces.append(Piece(" ; "))
                pieces += _paligemma_box(box.box_xyxy, subject)
                pieces.append(Piece(f" {box.label}", Mention((subject,))))
    return pieces


def ranked_subjects(pieces: Sequence[Piece]) -> list[int]:
    """Return the subjects of an answer, in its order."""
    ranked = dict[int, None]()
    for piece in pieces:
        if piece.mention:
            ranked.update(dict.fromkeys(piece.mention.subjects))
    return list(ranked)


def _expected(boxes: Sequence[Detection], labels: Sequence[str]) -> list[Detection]:
    """Return the true boxes; if `labels` is not empty, only theirs."""
    return [box for box in boxes if not labels or box.label in labels]


def _text(picture: Picture, question: Question, text: str) -> Iterator[Piece]:
    """Yield the pieces of a text answer; a number mentions all objects."""
    objects = picture.scene.objects
    if question.task == "captioning":
        yield from _caption(picture, text)
    elif question.name.endswith("count"):
        yield Piece(text, Mention(tuple(range(len(objects)))) if objects else None)
    elif text and text == picture.text:
        yield from _characters(picture)
    else:
        region = question.parameters.get("region")
        wording = str(question.parameters.get("question", ""))
        mention = None
        for index, drawn in enumerate(objects):
            is_named = wording.endswith((f" {drawn.name}?", f" the {drawn.shape}?"))
            if mention is None and (is_named or list(picture.boxes[index]) == region):
                mention = Mention((index,))
        yield Piece(text, mention)


def _caption(picture: Picture, text: str) -> Iterator[Piece]:
    """Yield the pieces of a caption: count, objects with articles, `text`, the word."""
    sentence, says, word = text.partition(" The text says ")
    end = 0
    for match in _PHRASES.finditer(sentence):
        yield Piece(sentence[end : match.start()])
        yield Piece(match[0], Mention(_mentioned_by(picture.scene, match[0])))
        end = match.end()
    yield Piece(sentence[end:])
    if word:
        yield Piece(says)
        yield from _characters(picture)
        yield Piece(".")


def _mentioned_by(scene: Scene, phrase: str) -> tuple[int, ...]:
    """Return the object that a phrase names, the word, or for a count all objects."""
    for index, drawn in enumerate(scene.objects):
        if phrase.endswith(drawn.name):
            return (index,)
    return (WORD,) if phrase == "text" else tuple(range(len(scene.objects)))


def _characters(picture: Picture) -> Iterator[Piece]:
    for index, character in enumerate(picture.text):
        yield Piece(character, Mention((WORD,), character=index))


def _florence2_box(box: BoxXYXY, subject: int) -> Iterator[Piece]:
    for coordinate, px in enumerate(box):
        yield _florence2_location(px, BOX_STEP, Mention((subject,), coordinate=coordinate))


def _florence2_location(px: float, step: int, mention: Mention) -> Piece:
    position = px * florence2_grammar.NUM_BINS / CANVAS_PX - 0.5  # whole at bin centres
    number = _rounded(position, step, florence2_grammar.NUM_BINS)
    return Piece(florence2_grammar.location_token(number), mention, position, step)


def _paligemma_box(box: BoxXYXY, subject: int) -> Iterator[Piece]:
    for coordinate in (1, 0, 3, 2):  # y1 x1 y2 x2
        position = box[coordinate] * (paligemma_grammar.NUM_BINS - 1) / CANVAS_PX
        number = _rounded(position, BOX_STEP, paligemma_grammar.NUM_BINS)
        mention = Mention((subject,), coordinate=coordinate)
        yield Piece(paligemma_grammar.location_token(number), mention, position, BOX_STEP)


def _rounded(position: float, step: int, num_bins: int) -> int:
    """Return the nearest multiple of `step` that is a bin."""
    last = (num_bins - 1) // step * step
    return min(last, max(0, round(position / step) * step))
