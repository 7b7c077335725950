"""Sampled scenes, over many seeds, and their pixels."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFont

from export.scenes import (
    CANVAS_PX,
    COLOR_RGB,
    COLORS,
    GREY_RANGE,
    RADIUS_RANGE_PX,
    RGB,
    SHAPES,
    Background,
    BoxXYXY,
    Scene,
    SceneObject,
    Shape,
    Word,
    are_apart,
    box_xyxy,
    ink_mask,
    load_font,
    outline_xy,
    render_scene,
    sample_scene,
)
from laboratory.scoring import mask_iou

SCENES = [sample_scene(seed) for seed in range(300)]
GREY = Background("dark", "plain", (40, 40, 40), (40, 40, 40), 0.0, 4, 0)


def all_boxes(scene: Scene) -> list[BoxXYXY]:
    boxes = [box_xyxy(item) for item in scene.objects]
    return [*boxes, scene.word.box_xyxy] if scene.word else boxes


def test_a_seed_gives_one_scene() -> None:
    assert [sample_scene(seed) for seed in range(50)] == SCENES[:50]
    assert len({repr(scene) for scene in SCENES}) == len(SCENES)
    pixels = [render_scene(scene).tobytes() for scene in (*SCENES[:20], *SCENES[:20])]
    assert pixels[:20] == pixels[20:]


def test_objects_and_word_lie_apart_within_the_canvas() -> None:
    for scene in SCENES:
        for left, top, right, bottom in all_boxes(scene):
            assert 0 <= left < right <= CANVAS_PX
            assert 0 <= top < bottom <= CANVAS_PX
        for first, second in combinations(all_boxes(scene), 2):
            assert are_apart(first, second, 4.0)
        centres = [item.center_xy[0] for item in scene.objects]
        assert all(second - first >= 9.0 for first, second in pairwise(centres))
        assert len({item.name for item in scene.objects}) == len(scene.objects)


def test_sizes_and_colours_stay_in_their_ranges() -> None:
    for scene in SCENES:
        for item in scene.objects:
            lowest, highest = RADIUS_RANGE_PX[item.size]
            assert lowest <= item.radius_px <= highest
            assert np.abs(np.subtract(item.rgb, COLOR_RGB[item.color])).max() <= 14
        darkest, brightest = GREY_RANGE[scene.background.brightness]
        channels = scene.background.start_rgb + scene.background.end_rgb
        assert darkest - 5 <= min(channels) <= max(channels) <= brightest + 5


def test_every_kind_of_content_occurs() -> None:
    names = {item.name for scene in SCENES for item in scene.objects}
    assert names == {f"{color} {shape}" for color in COLORS for shape in SHAPES}
    assert {len(scene.objects) for scene in SCENES} == {1, 2, 3, 4}
    assert {scene.background.texture for scene in SCENES} == {"plain", "gradient", "noisy"}
    words = [scene.word for scene in SCENES if scene.word]
    assert {word.font_face for word in words} == {"regular", "bold", "pillow"}
    assert 0.4 < len(words) / len(SCENES) < 0.6
    for word in words:
        is_letters = word.text.isalpha() and word.text.isupper() and 2 <= len(word.text) <= 5
        assert is_letters or (word.text.isdigit() and 2 <= len(word.text) <= 4)


@pytest.mark.parametrize("num_objects", range(5))
@pytest.mark.parametrize("has_word", [False, True])
def test_the_caller_may_choose_objects_and_word(num_objects: int, has_word: bool) -> None:
    for seed in range(10):
        scene = sample_scene(seed, num_objects, has_word)
        assert (len(scene.objects), scene.word is not None) == (num_objects, has_word)
    with pytest.raises(ValueError, match="num_objects is 5; allowed: 0 to 4"):
        sample_scene(0, num_objects=5)


def test_fonts_are_scalable() -> None:
    assert isinstance(load_font("regular", 20), ImageFont.FreeTypeFont)
    assert ink_mask("STOP", "bold", 40).width > 1.8 * ink_mask("STOP", "bold", 20).width


def scene_of(
    *objects: SceneObject, word: Word | None = None, background: Background = GREY
) -> Scene:
    return Scene(0, background, objects, word)


def a_shape(shape: Shape) -> SceneObject:
    return SceneObject("red", shape, "large", (218, 38, 38), (80.3, 101.6), 30.4)


def pixels_of(scene: Scene, size_px: int = CANVAS_PX) -> NDArray[np.int64]:
    return np.asarray(render_scene(scene, size_px)).astype(np.int64)


@pytest.mark.parametrize("size_px", [96, 192, 333, 768])
def test_each_object_has_its_colour_at_its_centre(size_px: int) -> None:
    for scene in SCENES[:10]:
        image = render_scene(scene, size_px)
        assert (image.mode, image.size) == ("RGB", (size_px, size_px))
        for item in scene.objects:
            x, y = (int(value * size_px / CANVAS_PX) for value in item.center_xy)
            assert image.getpixel((x, y)) == item.rgb


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size_px", "min_iou"), [(192, 0.96), (768, 0.99)])
def test_pixels_are_those_inside_the_outline(shape: Shape, size_px: int, min_iou: float) -> None:
    """Pixels on the edge are half covered and count for one side only, hence the tolerance."""
    item = a_shape(shape)
    is_red = pixels_of(scene_of(item), size_px)[:, :, 0] > 129
    runs = []  # a rectangle of one pixel's height for every run of every row
    for y, row in enumerate(is_red):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        for left, right in edges.reshape(-1, 2):
            runs.append([(left, y), (right, y), (right, y + 1), (left, y + 1)])
    outline = np.array(outline_xy(item)) * size_px / CANVAS_PX
    assert mask_iou([{"polygons": runs}], [outline.tolist()], (size_px, size_px)) >= min_iou


def test_slanted_edges_are_antialiased() -> None:
    reds = set(np.unique(pixels_of(scene_of(a_shape("circle")))[:, :, 0]).tolist())
    assert {40, 218} < reds
    assert len(reds) >= 10


@pytest.mark.parametrize(("brightness", "ink"), [("dark", (255, 255, 255)), ("light", (0, 0, 0))])
def test_a_word_contrasts_with_its_background(brightness: str, ink: RGB) -> None:
    for scene in SCENES[:80]:
        if scene.word and scene.background.brightness == brightness:
            left, top, right, bottom = map(int, scene.word.box_xyxy)
            pixels = pixels_of(scene)[top:bottom, left:right]
            assert (pixels == ink).all(axis=-1).any()


@pytest.mark.parametrize("size_px", [192, 500, 1000])
def test_ink_fills_the_box_of_a_word(size_px: int) -> None:
    """Faint pixels at the ink's edge are not seen as ink here, hence the tolerance of a pixel."""
    for seed in range(30):
        word = sample_scene(seed, has_word=True).word
        assert word is not None
        rows, columns = np.nonzero(pixels_of(scene_of(word=word), size_px)[:, :, 0] > 60)
        ink = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(ink * CANVAS_PX / size_px - word.box_xyxy).max() <= 1.0


def test_a_gradient_runs_along_its_angle() -> None:
    rising = Background("dark", "gradient", (20, 20, 20), (60, 60, 60), 0.0, 4, 0)
    pixels = pixels_of(scene_of(background=rising))
    assert pixels[0, 0].tolist() == [20, 20, 20]
    assert pixels[100, -1].tolist() == [60, 60, 60]
    assert (np.diff(pixels[7, :, 0]) >= 0).all()
    assert (pixels[0] == pixels[-1]).all()
