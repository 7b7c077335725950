from collections.abc import Iterator

import numpy as np
import pytest

from export.scenes import CANVAS_PX, sample_scene
from laboratory.training.data.cell_targets import NOTHING, NUM_SLOTS, cell_targets
from laboratory.training.data.mentions import Mention
from laboratory.training.data.pictures import CHARACTERS, FIRST_LINE, Picture
from laboratory.training.data.shape_pictures import shape_picture

GRID = 12
CELL_PX = CANVAS_PX / GRID


def pictures() -> Iterator[Picture]:
    for seed in range(100):
        yield shape_picture(sample_scene(seed))


def test_every_part_has_cells_in_its_box() -> None:
    for picture in pictures():
        targets = cell_targets(picture, GRID)
        for subject, part in picture.parts.items():
            cells = np.flatnonzero(targets.mentioned(Mention(subject)))
            assert len(cells), picture.seed
            left, top, right, bottom = part.box_xyxy
            columns = cells % GRID
            rows = cells // GRID
            assert (columns >= left // CELL_PX).all()
            assert (columns <= right // CELL_PX).all()
            assert (rows >= top // CELL_PX).all()
            assert (rows <= bottom // CELL_PX).all()


def test_every_character_has_a_cell_and_slots_hold_characters_of_their_line() -> None:
    for picture in pictures():
        targets = cell_targets(picture, GRID)
        for subject, part in picture.parts.items():
            if subject < FIRST_LINE:
                continue
            for index in range(len(part.name)):
                assert targets.mentioned(Mention(subject, character=index)).any()
        assert (targets.characters != NOTHING).any() == (FIRST_LINE in picture.parts)


def test_slots_read_left_to_right() -> None:
    for seed in range(100):
        picture = shape_picture(sample_scene(seed, has_word=True))
        targets = cell_targets(picture, GRID)
        row = np.flatnonzero(targets.subject == FIRST_LINE)[0] // GRID
        slots = targets.characters.reshape(GRID, GRID * NUM_SLOTS)[row]
        indices = targets.indices.reshape(GRID, GRID * NUM_SLOTS)[row]
        read = indices[indices != NOTHING]
        assert (np.diff(read) >= 0).all()
        text = picture.parts[FIRST_LINE].name
        for index, character in zip(read, slots[slots != NOTHING], strict=True):
            assert CHARACTERS[character] == text[index]


@pytest.mark.parametrize("seed", range(10))
def test_a_mention_of_a_point_is_the_nearest_cell_of_the_object(seed: int) -> None:
    picture = shape_picture(sample_scene(seed, num_objects=2))
    targets = cell_targets(picture, GRID)
    for subject in (0, 1):
        whole = targets.mentioned(Mention(subject))
        for point in picture.parts[subject].polygon_xy():
            (cell,) = np.flatnonzero(targets.mentioned(Mention(subject, point_xy=point)))
            centres = (np.argwhere(whole.reshape(GRID, GRID))[:, ::-1] + 0.5) * CELL_PX
            distance = np.hypot(*((np.array([cell % GRID, cell // GRID]) + 0.5) * CELL_PX - point))
            assert whole[cell]
            assert distance == np.hypot(*(centres - point).T).min()


def test_mention_of_an_absent_object_has_no_cells() -> None:
    targets = cell_targets(shape_picture(sample_scene(1, num_objects=1)), GRID)
    assert not targets.mentioned(Mention(3, point_xy=(5.0, 5.0))).any()
