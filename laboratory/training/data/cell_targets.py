"""Targets for each cell of an image: an image token of a square grid, row by row.

A cell belongs to the part of the picture whose box contains its centre, the smallest of several. A
cell of a line has `NUM_SLOTS` slots from left to right, each with the nearest character.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from export.scenes import CANVAS_PX, BoxXYXY
from laboratory.training.data.mentions import Mention
from laboratory.training.data.pictures import CHARACTERS, FIRST_LINE, Part, Picture, Subject

NUM_SLOTS = 4
MAX_CHARACTERS = 40  # indices of characters in a line are limited to it
NOTHING = -1
Array = NDArray[np.int64]
_CHARACTER_CLASS = {character: index for index, character in enumerate(CHARACTERS)}


@dataclass(frozen=True, slots=True)
class CellTargets:
    """Classes of the N cells; `NOTHING` for a cell without the property."""

    subject: Array  # (N,) see `Picture`
    color: Array  # (N,)
    thing: Array  # (N,)
    size: Array  # (N,)
    box: NDArray[np.float32]  # (N, 4) px of the canvas
    characters: Array  # (N, NUM_SLOTS)
    indices: Array  # (N, NUM_SLOTS) of the characters in their line
    brightness: Array  # (N,) of the background: 0 dark, 1 light
    cells_of: Mapping[tuple[Subject, int | None], Array]  # cells of each subject and character

    def mentioned(self, mention: Mention) -> NDArray[np.bool_]:
        """Return the cells (N,) of a mention."""
        mentioned = np.zeros(len(self.subject), bool)
        cells = self.cells_of.get((mention.subject, mention.character))
        if cells is None:
            return mentioned
        if mention.point_xy is not None:
            grid = isqrt(len(self.subject))
            centres = (np.stack([cells % grid, cells // grid], axis=1) + 0.5) * (CANVAS_PX / grid)
            cells = cells[np.hypot(*(centres - mention.point_xy).T).argsort()[:1]]
        mentioned[cells] = True
        return mentioned


def cell_targets(picture: Picture, grid: int) -> CellTargets:
    """Return the targets of a picture on a grid of `grid` × `grid` cells."""
    num = grid * grid
    cells_of = dict[tuple[Subject, int | None], Array]()
    targets = CellTargets(
        subject=np.full(num, NOTHING),
        color=np.full(num, NOTHING),
        thing=np.full(num, NOTHING),
        size=np.full(num, NOTHING),
        box=np.zeros((num, 4), np.float32),
        characters=np.full((num, NUM_SLOTS), NOTHING),
        indices=np.full((num, NUM_SLOTS), NOTHING),
        brightness=np.full(num, int(picture.is_light)),
        cells_of=cells_of,
    )
    for subject, part in sorted(picture.parts.items(), key=lambda item: -_area(item[1].box_xyxy)):
        cells = _cells(part.box_xyxy, grid, grid)
        cells_of[subject, None] = cells
        targets.subject[cells] = subject
        targets.box[cells] = part.box_xyxy
        for name in ("color", "thing", "size"):
            getattr(targets, name)[cells] = part.classes.get(name, NOTHING)
        if subject >= FIRST_LINE:
            _set_characters(targets, cells_of, subject, part, grid)
    # An object all of whose cells are others' is mentioned by them.
    for subject in picture.parts:
        own = np.flatnonzero(targets.subject == subject)
        if len(own):
            cells_of[subject, None] = own
    return targets


def _set_characters(
    targets: CellTargets,
    cells_of: dict[tuple[Subject, int | None], Array],
    subject: Subject,
    part: Part,
    grid: int,
) -> None:
    for index, (character, box) in enumerate(part.characters):
        slots = _cells(box, grid * NUM_SLOTS, grid)
        rows = slots // (grid * NUM_SLOTS)
        columns = slots % (grid * NUM_SLOTS)
        cells = rows * grid + columns // NUM_SLOTS
        targets.characters[cells, columns % NUM_SLOTS] = _CHARACTER_CLASS.get(character, NOTHING)
        targets.indices[cells, columns % NUM_SLOTS] = min(index, MAX_CHARACTERS - 1)
        cells_of[subject, index] = np.unique(cells)


def _area(box: BoxXYXY) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _cells(box: BoxXYXY, num_columns: int, num_rows: int) -> Array:
    """Return the cells with centres in the box, or else in its nearest row or column."""
    columns = _indices(box[0], box[2], num_columns)
    rows = _indices(box[1], box[3], num_rows)
    return np.asarray((rows[:, None] * num_columns + columns[None, :]).reshape(-1))


def _indices(start_px: float, end_px: float, num: int) -> Array:
    cell_px = CANVAS_PX / num
    first = np.ceil(start_px / cell_px - 0.5)
    last = np.floor(end_px / cell_px - 0.5)
    if last < first:
        first = last = np.floor((start_px + end_px) / 2 / cell_px)
    return np.arange(min(max(first, 0), num - 1), max(min(last, num - 1), 0) + 1).astype(np.int64)
