import numpy as np

from export.scenes import sample_scene
from export.scenes.geometry import box_xyxy, polygon_xy
from laboratory.training.data.cell_targets import CELL_PX, CHARACTERS, GRID, NOTHING, cell_targets
from laboratory.training.data.mentions import WORD, Mention


def test_every_object_and_word_has_cells_inside_its_box() -> None:
    for seed in range(200):
        scene = sample_scene(seed)
        targets = cell_targets(scene)
        for index, drawn in enumerate(scene.objects):
            cells = np.flatnonzero(targets.subject == index)
            assert len(cells), seed
            left, top, right, bottom = box_xyxy(drawn)
            xs = (cells % GRID + 0.5) * CELL_PX
            ys = (cells // GRID + 0.5) * CELL_PX
            assert ((xs >= left) & (xs <= right) & (ys >= top) & (ys <= bottom)).all()
        assert (targets.subject == WORD).any() == (scene.word is not None)


def test_every_character_has_a_cell_and_reads_left_to_right() -> None:
    for seed in range(200):
        scene = sample_scene(seed, has_word=True)
        assert scene.word is not None
        targets = cell_targets(scene)
        row = np.flatnonzero(targets.subject == WORD)[0] // GRID
        indices = targets.half_indices.reshape(GRID, GRID * 2)[row]
        indices = indices[indices != NOTHING]
        assert (np.diff(indices) >= 0).all()
        seen = {
            int(index): CHARACTERS[c]
            for index, c in zip(
                targets.half_indices.flat, targets.half_characters.flat, strict=True
            )
            if index >= 0
        }
        assert all(scene.word.text[index] == character for index, character in seen.items())
        # a narrow one may lie between two halves
        assert len(seen) >= len(scene.word.text) - 1, scene.word.text


def test_a_mention_of_a_character_is_a_part_of_the_word() -> None:
    scene = sample_scene(3, has_word=True)
    targets = cell_targets(scene)
    word = targets.mentioned(Mention(WORD))
    first = targets.mentioned(Mention(WORD, character=0))
    assert 0 < first.sum() < word.sum()
    assert word[first].all()


def test_a_mention_of_a_point_is_the_nearest_cell_of_the_object() -> None:
    for seed in range(50):
        scene = sample_scene(seed, num_objects=2)
        targets = cell_targets(scene)
        for index, drawn in enumerate(scene.objects):
            whole = targets.mentioned(Mention(index))
            for point in polygon_xy(drawn):
                (cell,) = np.flatnonzero(targets.mentioned(Mention(index, point_xy=point)))
                centres = (np.argwhere(whole.reshape(GRID, GRID))[:, ::-1] + 0.5) * CELL_PX
                distance = np.hypot(
                    *((np.array([cell % GRID, cell // GRID]) + 0.5) * CELL_PX - point)
                )
                assert whole[cell]
                assert distance == np.hypot(*(centres - point).T).min()


def test_mention_of_an_absent_object_has_no_cells() -> None:
    assert (
        not cell_targets(sample_scene(1, num_objects=1))
        .mentioned(Mention(3, point_xy=(5.0, 5.0)))
        .any()
    )
