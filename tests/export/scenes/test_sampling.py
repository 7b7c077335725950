"""Contents and placement of sampled scenes, over many seeds."""

from itertools import combinations, pairwise

import pytest
from PIL import ImageFont

from export.scenes import (
    CANVAS_PX,
    COLOR_RGB,
    COLORS,
    GREY_RANGE,
    RADIUS_RANGE_PX,
    SHAPES,
    BoxXYXY,
    Scene,
    are_apart,
    box_xyxy,
    ink_mask,
    load_font,
    sample_scene,
)

SCENES = [sample_scene(seed) for seed in range(300)]


def all_boxes(scene: Scene) -> list[BoxXYXY]:
    return [box_xyxy(drawn) for drawn in scene.objects] + (
        [scene.word.box_xyxy] if scene.word else []
    )


def test_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    assert [sample_scene(seed) for seed in range(50)] == SCENES[:50]
    assert len({repr(scene) for scene in SCENES}) == len(SCENES)


def test_everything_is_inside_the_canvas() -> None:
    assert all(
        0 <= left < right <= CANVAS_PX and 0 <= top < bottom <= CANVAS_PX
        for scene in SCENES
        for left, top, right, bottom in all_boxes(scene)
    )


def test_objects_and_word_are_at_least_4_px_apart() -> None:
    assert all(
        are_apart(a, b, 4.0) for scene in SCENES for a, b in combinations(all_boxes(scene), 2)
    )


def test_objects_are_ordered_left_to_right_with_centres_9_px_apart() -> None:
    for scene in SCENES:
        centres = [drawn.center_xy[0] for drawn in scene.objects]
        assert all(second - first >= 9.0 for first, second in pairwise(centres))


def test_no_colour_shape_pair_occurs_twice() -> None:
    for scene in SCENES:
        assert len({drawn.name for drawn in scene.objects}) == len(scene.objects)


def test_radii_and_colours_stay_in_their_ranges() -> None:
    for drawn in (drawn for scene in SCENES for drawn in scene.objects):
        lowest, highest = RADIUS_RANGE_PX[drawn.size]
        assert lowest <= drawn.radius_px <= highest
        wanted_rgb = COLOR_RGB[drawn.color]
        assert all(
            abs(got - wanted) <= 14 for got, wanted in zip(drawn.rgb, wanted_rgb, strict=True)
        )


def test_backgrounds_are_dark_or_light_greys_with_a_slight_tint() -> None:
    for background in (scene.background for scene in SCENES):
        lowest, highest = GREY_RANGE[background.brightness]
        channels = background.start_rgb + background.end_rgb
        assert lowest - 5 <= min(channels)
        assert max(channels) <= highest + 5


def test_all_objects_counts_textures_and_fonts_occur() -> None:
    objects = [drawn for scene in SCENES for drawn in scene.objects]
    assert {drawn.name for drawn in objects} == {
        f"{color} {shape}" for color in COLORS for shape in SHAPES
    }
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}
    assert {scene.background.texture for scene in SCENES} == {"plain", "gradient", "noisy"}
    assert {scene.word.font_face for scene in SCENES if scene.word} == {"regular", "bold", "pillow"}


def test_about_half_of_the_scenes_have_a_word_of_letters_or_digits() -> None:
    texts = [scene.word.text for scene in SCENES if scene.word]
    assert 0.4 < len(texts) / len(SCENES) < 0.6
    for text in texts:
        is_letters = text.isalpha() and text.isupper() and 2 <= len(text) <= 5
        assert is_letters or (text.isdigit() and 2 <= len(text) <= 4)


@pytest.mark.parametrize("num_objects", range(5))
@pytest.mark.parametrize("has_word", [False, True])
def test_the_caller_may_choose_number_of_objects_and_word(num_objects: int, has_word: bool) -> None:
    for seed in range(10):
        scene = sample_scene(seed, num_objects, has_word)
        assert (len(scene.objects), scene.word is not None) == (num_objects, has_word)


def test_five_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="num_objects is 5; allowed: 0 to 4"):
        sample_scene(0, num_objects=5)


def test_every_font_face_is_scalable() -> None:
    assert isinstance(load_font("regular", 20), ImageFont.FreeTypeFont)
    assert ink_mask("STOP", "bold", 40).width > 1.8 * ink_mask("STOP", "bold", 20).width
