"""The batch of one training step: augmented images with the contents of each cell, and prompts with
answers whose tokens mention cells.

A cell is an image token of a square grid, row by row. It belongs to the subject whose box
contains its centre, the smallest of several. A cell of the word has `NUM_SLOTS` slots from left
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
    steps        (Q, T) of the location's grid, or 0
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diptych_client.results import InstancesResult
from export.scenes import CANVAS_PX, COLORS, SHAPES, SIZES, BoxXYXY, render_scene
from imaging.files import resize
from laboratory.questions import Question, QuestionPrompt, question_prompts
from laboratory.training.answers import (
    CHARACTERS,
    WORD,
    Mention,
    Picture,
    Piece,
    florence2_answer,
    paligemma_answer,
    ranked_subjects,
)
from runners.tokens.text import PromptTokenizer
from tasks.catalog import CatalogEntry

IMAGE_PX = 192
GRID = 12
NUM_CELLS = GRID * GRID
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
_SEQUENCES_PER_IMAGE = 4
_OTHER_WEIGHT = 0.5  # questions that are not in a recipe
_PADDING = {"answer_ids": NO_TOKEN, "coordinates": -1}  # others: 0

Batch = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
Cells = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Language:
    r"""The vocabulary of a model, and the prompt and answer formats of its family.

    Prompts are `<s> … </s>` and answers `<s> … </s>` of Florence-2, prompts `<bos> … \n` and
    answers `… <eos>` of PaliGemma.
    """

    entry: CatalogEntry
    tokenizer: Tokenizer
    prompt_tokenizer: PromptTokenizer
    bos_id: int
    eos_id: int

    @classmethod
    def of(cls, entry: CatalogEntry, folder: Path) -> "Language":
        file = folder / "tokenizer.json"
        rules = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(file))
        prompts = PromptTokenizer.load(file)
        return cls(entry, tokenizer, prompts, rules["bos_token_id"], rules["eos_token_id"])

    @property
    def answer_start(self) -> list[int]:
        return [self.bos_id] if self.entry.family == "florence2" else []

    def prompt_ids(self, prompt: QuestionPrompt) -> list[int]:
        segments = [(segment.text, segment.is_control) for segment in prompt.segments]
        end = [self.eos_id]
        if self.entry.family == "paligemma":
            end = self.tokenizer.encode("\n", add_special_tokens=False).ids
        return [self.bos_id, *self.prompt_tokenizer.encode(segments), *end]

    def answer(self, picture: Picture, question: Question, labels: Sequence[str]) -> list[Piece]:
        write = florence2_answer if self.entry.family == "florence2" else paligemma_answer
        return [piece for piece in write(picture, question, labels) if piece.text]


@dataclass(frozen=True, slots=True)
class CellTargets:
    """The contents of the cells of a picture, and the cells of each subject and character."""

    picture: Picture
    arrays: Arrays
    cells_of: dict[tuple[int, int | None], Cells]

    @classmethod
    def of(cls, picture: Picture) -> "CellTargets":
        targets = cls(picture, _nothing(picture), {})
        for subject, box in sorted(picture.boxes.items(), key=lambda item: -_area(item[1])):
            cells = _cells(box, GRID)
            targets.cells_of[subject, None] = cells
            values = {"subject": subject, "box": box}
            values |= dict.fromkeys(("color", "shape", "size"), NOTHING)
            if subject != WORD:
                drawn = picture.scene.objects[subject]
                values["color"] = COLORS.index(drawn.color)
                values["shape"] = SHAPES.index(drawn.shape)
                values["size"] = SIZES.index(drawn.size)
            for name, value in values.items():
                targets.arrays[name][cells] = value
            if subject == WORD:
                for index, character_box in enumerate(picture.character_boxes):
                    character = CHARACTERS.index(picture.text[index])
                    targets._set_character(index, character, character_box)
        # An object all of whose cells are others' is mentioned by them.
        for subject in picture.boxes:
            cells = np.flatnonzero(targets.arrays["subject"] == subject)
            if len(cells):
                targets.cells_of[subject, None] = cells
        return targets

    def _set_character(self, index: int, character: int, box: BoxXYXY) -> None:
        slots = _cells(box, GRID * NUM_SLOTS)
        rows, columns = np.divmod(slots, GRID * NUM_SLOTS)
        cells = rows * GRID + columns // NUM_SLOTS
        self.arrays["characters"][cells, columns % NUM_SLOTS] = character
        self.arrays["indices"][cells, columns % NUM_SLOTS] = index
        self.cells_of[WORD, index] = np.unique(cells)

    def mentioned(self, mention: Mention) -> NDArray[np.bool_]:
        """Return the cells (N,) of a mention; of a point, the nearest one of its object."""
        mentioned = np.zeros(NUM_CELLS, bool)
        cells = self.cells_of.get((mention.subjects[-1], mention.character))
        if cells is None:
            return mentioned
        if mention.point_xy is not None:
            centres = (np.stack([cells % GRID, cells // GRID], axis=1) + 0.5) * _CELL_PX
            cells = cells[np.hypot(*(centres - mention.point_xy).T).argsort()[:1]]
        mentioned[cells] = True
        return mentioned


def _nothing(picture: Picture) -> Arrays:
    """Return the arrays of cells without contents."""
    arrays: Arrays = {"box": np.zeros((NUM_CELLS, 4), np.float32)}
    for name in ("subject", "color", "shape", "size"):
        arrays[name] = np.full(NUM_CELLS, NOTHING)
    for name in ("characters", "indices"):
        arrays[name] = np.full((NUM_CELLS, NUM_SLOTS), NOTHING)
    brightness = int(picture.scene.background.brightness == "light")
    arrays["brightness"] = np.full(NUM_CELLS, brightness)
    return arrays


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
    return np.arange(max(first, 0), min(last, num - 1) + 1).astype(np.int64)


def image_batch(targets: Sequence[CellTargets], rng: Generator) -> Batch:
    """Return the augmented images of pictures with their targets."""
    pixels = np.stack([augmented_pixels(target.picture, rng) for target in targets])
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
    targets: Sequence[CellTargets],
    weights: Mapping[str, float],
    rng: Generator,
) -> Batch:
    """Sample examples about each picture by their questions' weights, and pad them."""
    rows_of = dict[str, list[Tensor]]()
    for index, target in enumerate(targets):
        for question, prompt in _sampled(language.entry, target.picture, weights, rng):
            prompt_ids = np.array(language.prompt_ids(prompt))
            example = answer_arrays(language, target, question, prompt.labels)
            example |= {"image_index": np.array(index), "prompt_ids": prompt_ids}
            example["num_prompt"] = np.array(len(prompt_ids))
            for name, values in example.items():
                rows_of.setdefault(name, []).append(torch.from_numpy(np.asarray(values)))
    batch = {}
    for name, rows in rows_of.items():
        if name in ("image_index", "num_prompt", "ranks"):
            batch[name] = torch.stack(rows)
        else:
            batch[name] = pad_sequence(rows, True, _PADDING.get(name, 0))
    return batch


def _sampled(
    entry: CatalogEntry, picture: Picture, weights: Mapping[str, float], rng: Generator
) -> list[tuple[Question, QuestionPrompt]]:
    """Return up to `_SEQUENCES_PER_IMAGE` different prompts with their questions."""
    choices = []
    shares = []
    for question in picture.questions:
        prompts = question_prompts(entry, question)
        for prompt in prompts:
            choices.append((question, prompt))
            shares.append(_weight(picture, question, weights) / len(prompts))
    chances = np.array(shares) / np.sum(shares)
    num = min(_SEQUENCES_PER_IMAGE, len(choices))
    indices = rng.choice(len(choices), num, replace=False, p=chances)
    return [choices[index] for index in indices]


def _weight(picture: Picture, question: Question, weights: Mapping[str, float]) -> float:
    """Return a question's weight; that of a segmentation may be of its shape, as in
    `instance_segmentation phrase star`.
    """
    weight = weights.get(question.name, _OTHER_WEIGHT)
    if not isinstance(question.truth, InstancesResult):
        return weight
    drawn = picture.scene.objects[picture.segmented(question)]
    return weights.get(f"{question.name} {drawn.shape}", weight)


def answer_arrays(
    language: Language, targets: CellTargets, question: Question, labels: Sequence[str]
) -> Arrays:
    """Return the arrays of one answer, with a row for each token but `ranks`, of the cells."""
    pieces = language.answer(targets.picture, question, labels)
    text = "".join(piece.text for piece in pieces)
    encoding = language.tokenizer.encode(text, add_special_tokens=False)
    ids = [*language.answer_start, *encoding.ids, language.eos_id]
    arrays: Arrays = {
        "answer_ids": np.array(ids),
        "mentioned": np.zeros((len(ids), NUM_CELLS), bool),
        "coordinates": np.full(len(ids), -1),
        "positions": np.zeros(len(ids), np.float32),
        "steps": np.zeros(len(ids), np.int64),
        "ranks": np.zeros(NUM_CELLS, np.int64),
    }
    ends = np.cumsum([len(piece.text) for piece in pieces])
    for index, (_, end) in enumerate(encoding.offsets, start=len(language.answer_start)):
        piece = pieces[int(np.searchsorted(ends, end))]  # with the token's last character
        if piece.mention is not None:
            arrays["mentioned"][index] = targets.mentioned(piece.mention)
            if piece.mention.coordinate is not None:
                arrays["coordinates"][index] = piece.mention.coordinate
        arrays["positions"][index] = piece.position or 0.0
        arrays["steps"][index] = piece.step
    for rank, subject in enumerate(ranked_subjects(pieces), start=1):
        arrays["ranks"][targets.arrays["subject"] == subject] = rank
    return arrays
