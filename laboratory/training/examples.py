"""The batch of one training step: augmented images with the contents of each cell, and prompts with
answers whose tokens mention cells.

A cell is an image token of a square grid, row by row. It belongs to the part of the picture whose
box contains its centre, the smallest of several. A cell of the word has `NUM_SLOTS` slots from left
to right, each with the nearest character. A writer is the decoder position that predicts a token.

B images, N cells, Q sequences, S prompt (padded), T answer (padded). Keys of an image batch:

    pixels       (B, H, W, 3)            characters, indices  (B, N, NUM_SLOTS); index in the word
    subject      (B, N) see `Picture`    color, shape, size   (B, N)
    box          (B, N, 4) px of canvas  brightness           (B, N) of the background: 0, 1 light

Classes are `NOTHING` for a cell without the property. Keys of a sequence batch:

    image_index  (Q)                     prompt_ids           (Q, S)
    num_prompt   (Q)                     answer_ids           (Q, T) `NO_TOKEN` at padding
    mentioned    (Q, T, N) bool          ranks                (Q, N) order of mention, or 0
    coordinates  (Q, T) of a box, or -1  positions            (Q, T) of a location, before rounding
    places       (Q, T) in a run, or -1  steps                (Q, T) of the location's grid, or 0
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from export.scenes import CANVAS_PX, COLORS, SHAPES, SIZES, BoxXYXY, render_scene
from imaging.files import resize
from laboratory.questions import InstancesTruth, Question, question_prompts
from laboratory.training.answers import Mention, Piece, WriteAnswer, ranked_subjects
from laboratory.training.pictures import CHARACTERS, WORD, Part, Picture, SpannedQuestion
from runners.tokens.text import PromptTokenizer
from tasks.catalog import CatalogEntry

IMAGE_PX = 192
GRID = 12
NUM_SLOTS = 4
NOTHING = -1
NO_TOKEN = -100
_CELL_PX = CANVAS_PX / GRID
_SIZES_PX = (90, 512)  # rendered sizes: larger ones would differ only in the downscaling
_NATIVE_SHARE = 0.2  # rendered at the model's input size: fast, and the sharpest
_BLUR_SHARE = 0.2
_MAX_BLUR = 0.006  # radius as a share of the side
_JPEG_SHARE = 0.3
_JPEG_QUALITIES = (50, 95)
_OTHER_WEIGHT = 0.5  # questions that are not in a recipe
_PADDING = {"answer_ids": NO_TOKEN, "coordinates": -1, "places": -1}  # others: 0

Batch = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
Cells = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Language:
    """The vocabulary and the prompt and answer formats of a family."""

    entry: CatalogEntry
    tokenizer: Tokenizer
    prompt_tokenizer: PromptTokenizer
    prompt_start: tuple[int, ...]  # ids before and after a prompt
    prompt_end: tuple[int, ...]
    answer_start: tuple[int, ...]  # ids before and after an answer
    answer_end: tuple[int, ...]
    write_answer: WriteAnswer


@dataclass(frozen=True, slots=True)
class CellTargets:
    """The contents of the cells of a picture, and the cells of each subject and character."""

    arrays: Arrays
    cells_of: Mapping[tuple[int, int | None], Cells]

    def mentioned(self, mention: Mention) -> NDArray[np.bool_]:
        """Return the cells (N,) of a mention; of a point, the nearest one of its object."""
        mentioned = np.zeros(GRID * GRID, bool)
        cells = self.cells_of.get((mention.subject, mention.character))
        if cells is None:
            return mentioned
        if mention.point_xy is not None:
            centres = (np.stack([cells % GRID, cells // GRID], axis=1) + 0.5) * _CELL_PX
            cells = cells[np.hypot(*(centres - mention.point_xy).T).argsort()[:1]]
        mentioned[cells] = True
        return mentioned


def cell_targets(picture: Picture) -> CellTargets:
    """Return the targets of a picture."""
    num = GRID * GRID
    names = ("subject", "color", "shape", "size")
    arrays: Arrays = {name: np.full(num, NOTHING) for name in names}
    arrays["box"] = np.zeros((num, 4), np.float32)
    arrays["characters"] = np.full((num, NUM_SLOTS), NOTHING)
    arrays["indices"] = np.full((num, NUM_SLOTS), NOTHING)
    arrays["brightness"] = np.full(num, int(picture.scene.background.brightness == "light"))
    cells_of = dict[tuple[int, int | None], Cells]()
    for subject, part in sorted(picture.parts.items(), key=lambda item: -_area(item[1].box_xyxy)):
        cells = _cells(part.box_xyxy, GRID)
        cells_of[subject, None] = cells
        arrays["subject"][cells] = subject
        arrays["box"][cells] = part.box_xyxy
        for name in names[1:]:
            arrays[name][cells] = NOTHING
        if part.drawn is not None:
            arrays["color"][cells] = COLORS.index(part.drawn.color)
            arrays["shape"][cells] = SHAPES.index(part.drawn.shape)
            arrays["size"][cells] = SIZES.index(part.drawn.size)
        _set_characters(arrays, cells_of, part)
    # An object all of whose cells are others' is mentioned by them.
    for subject in picture.parts:
        cells = np.flatnonzero(arrays["subject"] == subject)
        if len(cells):
            cells_of[subject, None] = cells
    return CellTargets(arrays, cells_of)


def _set_characters(
    arrays: Arrays, cells_of: dict[tuple[int, int | None], Cells], part: Part
) -> None:
    for index, box in enumerate(part.characters):
        slots = _cells(box, GRID * NUM_SLOTS)
        columns = slots % (GRID * NUM_SLOTS)
        cells = slots // (GRID * NUM_SLOTS) * GRID + columns // NUM_SLOTS
        arrays["characters"][cells, columns % NUM_SLOTS] = CHARACTERS.index(part.name[index])
        arrays["indices"][cells, columns % NUM_SLOTS] = index
        cells_of[WORD, index] = np.unique(cells)


def _area(box: BoxXYXY) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _cells(box: BoxXYXY, num_columns: int) -> Cells:
    """Return the cells with centres in the box, or else in its nearest row or column."""
    columns = _indices(box[0], box[2], num_columns)
    rows = _indices(box[1], box[3], GRID)
    return np.asarray((rows[:, None] * num_columns + columns[None, :]).reshape(-1))


def _indices(start_px: float, end_px: float, num: int) -> Cells:
    cell_px = CANVAS_PX / num
    first = np.ceil(start_px / cell_px - 0.5)
    last = np.floor(end_px / cell_px - 0.5)
    if last < first:
        first = last = np.floor((start_px + end_px) / 2 / cell_px)
    return np.arange(min(max(first, 0), num - 1), max(min(last, num - 1), 0) + 1).astype(np.int64)


def image_batch(
    pictures: Sequence[Picture], targets: Sequence[CellTargets], rng: Generator
) -> Batch:
    """Return the augmented images of pictures with their targets."""
    pixels = np.stack([augmented_pixels(picture, rng) for picture in pictures])
    batch = {"pixels": torch.from_numpy(pixels)}
    for name in targets[0].arrays:
        batch[name] = torch.from_numpy(np.stack([target.arrays[name] for target in targets]))
    return batch


def augmented_pixels(picture: Picture, rng: Generator) -> NDArray[np.uint8]:
    """Render at a random size, sometimes blur or compress, and resize to the model's input."""
    size_px = IMAGE_PX
    if rng.random() >= _NATIVE_SHARE:
        smallest, largest = np.log(_SIZES_PX)
        size_px = round(float(np.exp(rng.uniform(smallest, largest))))
    image = render_scene(picture.scene, size_px)
    if rng.random() < _BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, _MAX_BLUR) * image.width))
    if rng.random() < _JPEG_SHARE:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*_JPEG_QUALITIES)))
        image = Image.open(file)
    return np.asarray(resize(image, (IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC))


def sequence_batch(
    language: Language,
    pictures: Sequence[Picture],
    targets: Sequence[CellTargets],
    weights: Mapping[str, float],
    num_per_image: int,
    rng: Generator,
) -> Batch:
    """Sample examples about each picture by their questions' weights, and pad them."""
    examples = list[Arrays]()
    for index, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        for example in _sampled(language, picture, target, weights, num_per_image, rng):
            examples.append(example | {"image_index": np.array(index)})
    batch = {}
    for name in examples[0]:
        rows = [torch.from_numpy(np.asarray(example[name])) for example in examples]
        if name in ("image_index", "num_prompt", "ranks"):
            batch[name] = torch.stack(rows)
        else:
            batch[name] = pad_sequence(rows, True, _PADDING.get(name, 0))
    return batch


def _sampled(
    language: Language,
    picture: Picture,
    targets: CellTargets,
    weights: Mapping[str, float],
    num: int,
    rng: Generator,
) -> list[Arrays]:
    """Return up to `num` examples of different prompts."""
    choices = []
    shares = []
    for spanned in picture.questions:
        prompts = question_prompts(language.entry, spanned.question)
        for prompt in prompts:
            choices.append((spanned, prompt))
            shares.append(_weight(picture, spanned.question, weights) / len(prompts))
    chances = np.array(shares) / np.sum(shares)
    drawn_indices = rng.choice(len(choices), min(num, len(choices)), replace=False, p=chances)
    examples = []
    for index in drawn_indices:
        spanned, prompt = choices[index]
        segments = [(segment.text, segment.is_control) for segment in prompt.segments]
        ids = (*language.prompt_start, *language.prompt_tokenizer.encode(segments))
        prompt_ids = np.array([*ids, *language.prompt_end])
        answer = answer_arrays(language, picture, targets, spanned, prompt.labels)
        lengths = {"prompt_ids": prompt_ids, "num_prompt": np.array(len(prompt_ids))}
        examples.append(lengths | answer)
    return examples


def _weight(picture: Picture, question: Question, weights: Mapping[str, float]) -> float:
    """Return a question's weight; that of a segmentation may be of its shape, as in
    `instance_segmentation phrase star`.
    """
    weight = weights.get(question.name, _OTHER_WEIGHT)
    if not isinstance(question.truth, InstancesTruth):
        return weight
    drawn = picture.parts[picture.segmented_subject(question)].drawn
    assert drawn is not None
    return weights.get(f"{question.name} {drawn.shape}", weight)


def answer_arrays(
    language: Language,
    picture: Picture,
    targets: CellTargets,
    spanned: SpannedQuestion,
    labels: Sequence[str],
) -> Arrays:
    """Return the arrays of one answer, with a row for each token but `ranks`, of the cells."""
    pieces = [piece for piece in language.write_answer(picture, spanned, labels) if piece.text]
    ids, tokens = _tokens(language, pieces)
    num = len(tokens)
    arrays: Arrays = {
        "answer_ids": np.array(ids),
        "mentioned": np.zeros((num, GRID * GRID), bool),
        "coordinates": np.full(num, -1),
        "positions": np.zeros(num, np.float32),
        "steps": np.zeros(num, np.int64),
        "places": np.full(num, -1),
        "ranks": np.zeros(GRID * GRID, np.int64),
    }
    for index, piece in enumerate(tokens):
        if piece is None:
            continue
        if piece.mention is not None:
            arrays["mentioned"][index] = targets.mentioned(piece.mention)
            if piece.mention.coordinate is not None:
                arrays["coordinates"][index] = piece.mention.coordinate
        arrays["positions"][index] = piece.position or 0.0
        arrays["steps"][index] = piece.step
        if piece.step:
            arrays["places"][index] = arrays["places"][index - 1] + 1 if index else 0
    for rank, subject in enumerate(ranked_subjects(spanned, pieces), start=1):
        arrays["ranks"][targets.arrays["subject"] == subject] = rank
    return arrays


def _tokens(language: Language, pieces: Sequence[Piece]) -> tuple[list[int], list[Piece | None]]:
    """Return the ids of an answer, and the piece with each token's last character."""
    text = "".join(piece.text for piece in pieces)
    encoding = language.tokenizer.encode(text, add_special_tokens=False)
    ends = np.cumsum([len(piece.text) for piece in pieces])
    tokens: list[Piece | None] = [None] * len(language.answer_start)
    for _, end in encoding.offsets:
        tokens.append(pieces[int(np.searchsorted(ends, end))])
    tokens += [None] * len(language.answer_end)
    return [*language.answer_start, *encoding.ids, *language.answer_end], tokens
