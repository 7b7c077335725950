"""Targets for each cell of an image: an image token of a grid of `GRID` × `GRID`, row by row.

A cell belongs to the object or word whose box contains its centre; each half of a word's cell to
the nearest character.
"""

from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase, digits

import numpy as np
from numpy.typing import NDArray

from export.scenes.fonts import load_font
from export.scenes.geometry import box_xyxy
from export.scenes.scene import CANVAS_PX, COLORS, SHAPES, SIZES, BoxXYXY, Scene, Word
from laboratory.training.data.mentions import WORD, Mention

GRID = 12
CELL_PX = CANVAS_PX / GRID
NUM_CELLS = GRID * GRID
CHARACTERS = ascii_uppercase + digits
MAX_CHARACTERS = 5
NOTHING = -1
Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CellTargets:
    """Classes of the N cells; `NOTHING` for a cell without the property."""

    subject: Array  # (N,) 0 to 3 for objects left to right, WORD
    color: Array  # (N,)
    shape: Array  # (N,)
    size: Array  # (N,)
    box: NDArray[np.float32]  # (N, 4) px of the canvas
    half_characters: Array  # (N, 2) the character in its left and right half
    half_indices: Array  # (N, 2) index of that character in the word
    text: Array  # (N, MAX_CHARACTERS) the whole word, len(CHARACTERS) after its end
    brightness: Array  # (N,) of the background: 0 dark, 1 light

    def mentioned(self, mention: Mention) -> NDArray[np.bool_]:
        """Return the cells (N,) of a mention."""
        if mention.character is not None:
            return np.asarray((self.half_indices == mention.character).any(axis=1))
        cells = np.asarray(self.subject == mention.subject)
        if mention.point_xy is None:
            return cells
        numbers = np.flatnonzero(cells)
        centres = (np.stack([numbers % GRID, numbers // GRID], axis=1) + 0.5) * CELL_PX
        nearest = np.zeros_like(cells)
        nearest[numbers[np.hypot(*(centres - mention.point_xy).T).argsort()[:1]]] = True
        return nearest


def cell_targets(scene: Scene) -> CellTargets:
    """Return the targets of a scene."""
    targets = CellTargets(
        subject=np.full(NUM_CELLS, NOTHING),
        color=np.full(NUM_CELLS, NOTHING),
        shape=np.full(NUM_CELLS, NOTHING),
        size=np.full(NUM_CELLS, NOTHING),
        box=np.zeros((NUM_CELLS, 4), np.float32),
        half_characters=np.full((NUM_CELLS, 2), NOTHING),
        half_indices=np.full((NUM_CELLS, 2), NOTHING),
        text=np.full((NUM_CELLS, MAX_CHARACTERS), NOTHING),
        brightness=np.full(NUM_CELLS, int(scene.background.brightness == "light")),
    )
    for index, drawn in enumerate(scene.objects):
        cells = _cells(box_xyxy(drawn))
        targets.subject[cells] = index
        targets.box[cells] = box_xyxy(drawn)
        targets.color[cells] = COLORS.index(drawn.color)
        targets.shape[cells] = SHAPES.index(drawn.shape)
        targets.size[cells] = SIZES.index(drawn.size)
    if scene.word is not None:
        _set_word(targets, scene.word)
    return targets


def _set_word(targets: CellTargets, word: Word) -> None:
    cells = _cells(word.box_xyxy)
    targets.subject[cells] = WORD
    targets.box[cells] = word.box_xyxy
    classes = [CHARACTERS.index(character) for character in word.text]
    targets.text[cells] = [*classes, *[len(CHARACTERS)] * (MAX_CHARACTERS - len(classes))]
    # the characters' centres, from the advances of the font
    font = load_font(word.font_face, word.font_size_px)
    ends = np.array([font.getlength(word.text[:count]) for count in range(len(word.text) + 1)])
    left, _, right, _ = word.box_xyxy
    edges = left + ends / ends[-1] * (right - left)
    centres = np.array([(start + end) / 2 for start, end in pairwise(edges)])
    for cell in cells:
        for half in (0, 1):
            x = (cell % GRID + 0.25 + half / 2) * CELL_PX
            nearest = int(np.abs(centres - x).argmin())
            targets.half_indices[cell, half] = nearest
            targets.half_characters[cell, half] = classes[nearest]


def _cells(box: BoxXYXY) -> Array:
    """Return the cells with centres in the box, or else in its nearest row or column."""
    columns = _indices(box[0], box[2])
    rows = _indices(box[1], box[3])
    return np.asarray((rows[:, None] * GRID + columns[None, :]).reshape(-1))


def _indices(start_px: float, end_px: float) -> Array:
    first = np.ceil(start_px / CELL_PX - 0.5)
    last = np.floor(end_px / CELL_PX - 0.5)
    if last < first:
        first = last = np.floor((start_px + end_px) / 2 / CELL_PX)
    return np.arange(max(first, 0), min(last, GRID - 1) + 1).astype(np.int64)
