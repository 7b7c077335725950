"""Sampled scenes, over many seeds, and their pixels."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych_client.geometry import ImageSize, polygons_mask
from export.scenes import (
    CANVAS_PX,
    COLOR_RGB,
    COLORS,
    GREY_RANGE,
    RADIUS_RANGE_PX,
    SHAPES,
    Background,
    BoxXYXY,
    Scene,
    SceneObject,
    Shape,
    are_apart,
    box_xyxy,
    outline_xy,
    render_scene,
    sample_scene,
)

SCENES = [sample_scene(seed) for seed in range(300)]
GREY = Background("dark", "plain", (40, 40, 40), (40, 40, 40), 0.0, 4, 0)


def all_boxes(scene: Scene) -> list[BoxXYXY]:
    boxes = [box_xyxy(drawn) for drawn in scene.objects]
    return [*boxes, scene.word.box_xyxy] if scene.word else boxes


def pixels_of(scene: Scene, size_px: int = CANVAS_PX) -> NDArray[np.int64]:
    return np.asarray(render_scene(scene, size_px)).astype(np.int64)


def test_a_seed_gives_one_scene() -> None:
    assert [sample_scene(seed) for seed in range(50)] == SCENES[:50]
    assert len({repr(scene) for scene in SCENES}) == len(SCENES)
    pixels = [render_scene(scene).tobytes() for scene in (*SCENES[:20], *SCENES[:20])]
    assert pixels[:20] == pixels[20:]


def test_objects_and_word_lie_apart_in_their_ranges() -> None:
    for scene in SCENES:
        for left, top, right, bottom in all_boxes(scene):
            assert 0 <= left < right <= CANVAS_PX
            assert 0 <= top < bottom <= CANVAS_PX
        for first, second in combinations(all_boxes(scene), 2):
            assert are_apart(first, second, 4.0)
        for first_object, second_object in pairwise(scene.objects):
            assert second_object.center_xy[0] - first_object.center_xy[0] >= 9.0
        assert len({drawn.name for drawn in scene.objects}) == len(scene.objects)
        for drawn in scene.objects:
            lowest, highest = RADIUS_RANGE_PX[drawn.size]
            assert lowest <= drawn.radius_px <= highest
            assert np.abs(np.subtract(drawn.rgb, COLOR_RGB[drawn.color])).max() <= 14
        darkest, brightest = GREY_RANGE[scene.background.brightness]
        channels = scene.background.start_rgb + scene.background.end_rgb
        assert darkest - 5 <= min(channels) <= max(channels) <= brightest + 5


def test_every_kind_of_content_occurs() -> None:
    names = set[str]()
    for scene in SCENES:
        names |= {drawn.name for drawn in scene.objects}
    assert names == set(map(" ".join, product(COLORS, SHAPES)))
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}
    assert {scene.background.texture for scene in SCENES} == {"plain", "gradient", "noisy"}
    words = [scene.word for scene in SCENES if scene.word]
    assert {word.font_face for word in words} == {"regular", "bold", "pillow"}
    assert 0.4 < len(words) / len(SCENES) < 0.6
    for word in words:
        is_letters = word.text.isalpha() and word.text.isupper() and 2 <= len(word.text) <= 5
        assert is_letters or (word.text.isdigit() and 2 <= len(word.text) <= 4)


@pytest.mark.parametrize("size_px", [96, 192, 768])
def test_each_object_has_its_colour_and_each_word_contrasts(size_px: int) -> None:
    for scene in SCENES[:20]:
        image = render_scene(scene, size_px)
        assert (image.mode, image.size) == ("RGB", (size_px, size_px))
        scale = size_px / CANVAS_PX
        for drawn in scene.objects:
            x, y = drawn.center_xy
            assert image.getpixel((int(x * scale), int(y * scale))) == drawn.rgb
        if scene.word and size_px >= CANVAS_PX:
            left, top, right, bottom = (int(side * scale) for side in scene.word.box_xyxy)
            ink = 255 if scene.background.brightness == "dark" else 0
            pixels = np.asarray(image)[top:bottom, left:right]
            assert (pixels == ink).all(axis=-1).any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size_px", "min_iou"), [(192, 0.96), (768, 0.99)])
def test_pixels_are_those_inside_the_outline(shape: Shape, size_px: int, min_iou: float) -> None:
    """Pixels on the edge are half covered and count for one side only, hence the tolerance."""
    drawn = SceneObject("red", shape, "large", (218, 38, 38), (80.3, 101.6), 30.4)
    reds = pixels_of(Scene(0, GREY, (drawn,), None), size_px)[:, :, 0]
    outline = np.array(outline_xy(drawn)) * size_px / CANVAS_PX
    inside = polygons_mask([tuple(map(tuple, outline.tolist()))], ImageSize(size_px, size_px))
    is_drawn = reds > 129
    assert (inside & is_drawn).sum() >= min_iou * (inside | is_drawn).sum()
    if shape == "circle":  # antialiased
        assert len(set(np.unique(reds).tolist())) >= 10


@pytest.mark.parametrize("size_px", [192, 1000])
def test_ink_fills_the_box_of_a_word(size_px: int) -> None:
    """Faint pixels at the ink's edge are not seen as ink here, hence the tolerance of a pixel."""
    for word in [scene.word for scene in SCENES[:60] if scene.word]:
        pixels = pixels_of(Scene(0, GREY, (), word), size_px)
        rows, columns = np.nonzero(pixels[:, :, 0] > 60)
        ink = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(ink * CANVAS_PX / size_px - word.box_xyxy).max() <= 1.0


def test_the_caller_may_choose_the_number_of_objects() -> None:
    assert [len(sample_scene(5, num_objects).objects) for num_objects in (0, 4)] == [0, 4]


def test_a_gradient_runs_along_its_angle() -> None:
    rising = Background("dark", "gradient", (20, 20, 20), (60, 60, 60), 0.0, 4, 0)
    pixels = pixels_of(Scene(0, rising, (), None))
    assert (pixels[0, 0, 0], pixels[100, -1, 0]) == (20, 60)
    assert (np.diff(pixels[7, :, 0]) >= 0).all()
