"""Scenes of drawn glyphs: what is true of the picture is what is visible in it."""

import numpy as np

from export.scenes.scene import CANVAS_PX
from laboratory.things import render_things, sample_things
from laboratory.things.material import FONTS
from laboratory.things.scene import RESOLUTION_PX, SCALE
from laboratory.things.wording import MAX_LINES, MAX_WORDS
from tests.support.drawn_material import DrawnMaterial

MATERIAL = DrawnMaterial()
SEEDS = range(40)


def test_a_seed_gives_the_same_scene_and_image() -> None:
    for seed in SEEDS[:8]:
        first = sample_things(seed, MATERIAL)
        again = sample_things(seed, DrawnMaterial())
        images = [render_things(scene, MATERIAL).tobytes() for scene in (first, again)]
        assert images[0] == images[1]
        assert [placed.box_xyxy for placed in first.things] == [
            placed.box_xyxy for placed in again.things
        ]


def test_things_are_ordered_and_their_visible_parts_do_not_overlap() -> None:
    is_hidden = False
    for seed in SEEDS:
        scene = sample_things(seed, MATERIAL, num_things=6, num_lines=0)
        middles = [placed.box_xyxy[0] + placed.box_xyxy[2] for placed in scene.things]
        assert middles == sorted(middles)
        covered = np.zeros((RESOLUTION_PX, RESOLUTION_PX), int)
        for placed in scene.things:
            left, top, right, bottom = (round(value * SCALE) for value in placed.box_xyxy)
            covered[top:bottom, left:right] += placed.visible
            is_hidden |= not placed.visible[-1].any() or placed.visible.mean() < 0.4
        assert covered.max() <= 1
    assert is_hidden


def test_only_visible_pixels_differ_from_the_background() -> None:
    for seed in SEEDS[:10]:
        scene = sample_things(seed, MATERIAL, num_things=4, num_lines=0)
        without = sample_things(seed, MATERIAL, num_things=0, num_lines=0)
        image = np.asarray(render_things(scene, MATERIAL, RESOLUTION_PX)).astype(int)
        background = render_things(without, MATERIAL, RESOLUTION_PX)
        changed = np.abs(image - np.asarray(background)).sum(axis=2) > 0
        for placed in scene.things:
            left, top, right, bottom = (round(value * SCALE) for value in placed.box_xyxy)
            # Half-transparent tips are not visible.
            changed[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = False
        assert not changed.any()


def test_outlines_follow_the_visible_part_and_polygons_are_short() -> None:
    for seed in SEEDS[:10]:
        for placed in sample_things(seed, MATERIAL, num_things=3, num_lines=0).things:
            xs, ys = zip(*placed.outline_xy, strict=True)
            assert np.allclose((min(xs), min(ys)), placed.box_xyxy[:2], atol=1.0)
            assert len(placed.polygon_xy) <= 20
            assert set(placed.polygon_xy) <= set(placed.outline_xy)


def test_the_characters_of_lines_spell_them() -> None:
    num_lines = set()
    for seed in SEEDS:
        scene = sample_things(seed, MATERIAL, num_things=1)
        num_lines.add(len(scene.lines))
        assert sum(len(line.text.split()) for line in scene.lines) <= MAX_WORDS + MAX_LINES
        for line in scene.lines:
            assert "".join(character for character, _ in line.characters) == line.text
    assert {0, 1, 6} <= num_lines


def test_turned_lines_fit_the_canvas_too() -> None:
    for seed in (*SEEDS, 3583, 8468):  # long lines are turned near an edge in the last two
        scene = sample_things(seed, MATERIAL, num_things=0, num_lines=1)
        for line in scene.lines:
            assert min(line.box_xyxy) >= 0
            assert max(line.box_xyxy) <= CANVAS_PX


def test_held_out_fonts_are_used_only_if_asked_for() -> None:
    held_out = {font.file for font in FONTS if font.is_held_out}
    for has_held_out_fonts in (False, True):
        for seed in SEEDS[:15]:
            scene = sample_things(seed, MATERIAL, 0, 2, has_held_out_fonts)
            assert all((line.font_file in held_out) == has_held_out_fonts for line in scene.lines)
