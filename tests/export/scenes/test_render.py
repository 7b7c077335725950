"""Rendered pixels: colours, sizes, edges and the word's ink."""

import numpy as np
import pytest
from numpy.typing import NDArray

from export.scenes import (
    CANVAS_PX,
    RGB,
    Background,
    Scene,
    SceneObject,
    Shape,
    Word,
    outline_xy,
    render_scene,
    sample_scene,
)
from laboratory.scoring import mask_iou

GREY = Background("dark", "plain", (40, 40, 40), (40, 40, 40), 0.0, 4, 0)


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
    for seed in range(10):
        scene = sample_scene(seed)
        image = render_scene(scene, size_px)
        assert (image.mode, image.size) == ("RGB", (size_px, size_px))
        for drawn in scene.objects:
            x, y = (int(value * size_px / CANVAS_PX) for value in drawn.center_xy)
            assert image.getpixel((x, y)) == drawn.rgb


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star"])
@pytest.mark.parametrize(("size_px", "min_iou"), [(192, 0.96), (768, 0.99)])
def test_drawn_pixels_are_those_inside_the_outline(
    shape: Shape, size_px: int, min_iou: float
) -> None:
    """Pixels on the edge are half covered and count for one side only, hence the tolerance."""
    drawn = a_shape(shape)
    scale = size_px / CANVAS_PX
    is_red = pixels_of(scene_of(drawn), size_px)[:, :, 0] > 129
    rows = [{"polygons": pixel_squares(is_red)}]
    outline = [(x * scale, y * scale) for x, y in outline_xy(drawn)]
    assert mask_iou(rows, [outline], (size_px, size_px)) >= min_iou


def pixel_squares(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Return a rectangle of one pixel's height for every run of every row."""
    rings = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        rings += [
            [(left, y), (right, y), (right, y + 1), (left, y + 1)]
            for left, right in edges.reshape(-1, 2)
        ]
    return rings


def test_slanted_edges_are_antialiased() -> None:
    reds = set(np.unique(pixels_of(scene_of(a_shape("circle")))[:, :, 0]).tolist())
    assert {40, 218} < reds
    assert len(reds) >= 10


@pytest.mark.parametrize("brightness_ink", [("dark", (255, 255, 255)), ("light", (0, 0, 0))])
def test_word_is_white_on_dark_and_black_on_light(brightness_ink: tuple[str, RGB]) -> None:
    brightness, ink = brightness_ink
    scenes = (sample_scene(seed, has_word=True) for seed in range(40))
    for scene in (
        scene for scene in scenes if scene.background.brightness == brightness and scene.word
    ):
        left, top, right, bottom = (
            (int(value) for value in scene.word.box_xyxy) if scene.word else (0,) * 4
        )
        assert ink in set(
            map(tuple, pixels_of(scene)[top:bottom, left:right].reshape(-1, 3).tolist())
        )


@pytest.mark.parametrize("size_px", [192, 500, 1000])
def test_ink_fills_the_box_of_the_word_at_every_size(size_px: int) -> None:
    """Faint pixels at the ink's edge are not seen as ink here, hence the tolerance of a pixel."""
    for seed in range(30):
        word = sample_scene(seed, has_word=True).word
        rows, columns = np.nonzero(pixels_of(scene_of(word=word), size_px)[:, :, 0] > 60)
        ink = (
            np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            * CANVAS_PX
            / size_px
        )
        assert word is not None
        assert np.abs(ink - word.box_xyxy).max() <= 1.0


def test_same_scene_gives_the_same_pixels() -> None:
    for seed in range(20):
        assert (
            render_scene(sample_scene(seed)).tobytes() == render_scene(sample_scene(seed)).tobytes()
        )


def test_gradient_runs_from_start_to_end_along_its_angle() -> None:
    rising = Background("dark", "gradient", (20, 20, 20), (60, 60, 60), 0.0, 4, 0)
    pixels = pixels_of(scene_of(background=rising))
    assert pixels[0, 0].tolist() == [20, 20, 20]
    assert pixels[100, -1].tolist() == [60, 60, 60]
    assert (np.diff(pixels[7, :, 0]) >= 0).all()
    assert (pixels[0] == pixels[-1]).all()


def test_noise_stays_within_its_amplitude() -> None:
    noisy = Background("light", "noisy", (200, 200, 240), (200, 200, 240), 0.0, 9, 3)
    difference = np.abs(pixels_of(scene_of(background=noisy)) - [200, 200, 240])
    assert 8 <= difference.max() <= 9
