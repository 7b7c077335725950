"""Pictures of answers: which pixels are drawn, and which remain unchanged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych_client import (
    Comparison,
    Detection,
    DetectionsResult,
    ErrorDetail,
    ImageSize,
    Instance,
    InstancesResult,
    ModelFailure,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from diptych_client.drawing import PALETTE, draw_answer, draw_comparison, open_upright
from diptych_client.results import Result
from tests.support.client_answers import answer

GREY = (90, 90, 90)
SIZE = ImageSize(width=300, height=200)
IMAGE = Image.new("RGB", (SIZE.width, SIZE.height), GREY)
RING = ((100.0, 60.0), (200.0, 60.0), (200.0, 160.0), (100.0, 160.0))
HOLE = ((130.0, 90.0), (170.0, 90.0), (170.0, 130.0), (130.0, 130.0))


def drawn_pixels(result: Result) -> np.ndarray:
    """Return the pixels (H, W, 3) of the image in the picture, without the title above it."""
    picture = draw_answer(IMAGE, answer(result, SIZE))
    title_px = next(y for y in range(picture.height) if picture.getpixel((299, y)) == GREY)
    return np.asarray(picture.crop((0, title_px, SIZE.width, title_px + SIZE.height)))


def test_a_box_is_drawn_on_its_edges_and_nowhere_inside() -> None:
    pixels = drawn_pixels(DetectionsResult((Detection((100, 60, 200, 160), "a", 0.5),)))
    for x, y in ((100, 110), (200, 110), (150, 160), (150, 60)):
        assert tuple(pixels[y, x]) == PALETTE[0]
    assert (pixels[80:150, 110:190] == GREY).all()
    assert (pixels[170:] == GREY).all()


def test_a_label_is_in_the_middle_of_its_background() -> None:
    pixels = drawn_pixels(DetectionsResult((Detection((100, 60, 200, 160), "HHH", 1),)))
    above_box = pixels[:58]
    (background,) = np.nonzero((above_box != GREY).any(axis=(0, 2)))
    (ink,) = np.nonzero((above_box < 30).all(axis=2).any(axis=0))
    assert ink.min() - background.min() == pytest.approx(background.max() - ink.max(), abs=1)


def test_each_label_has_its_own_colour() -> None:
    boxes = [
        Detection((20.0 + 90 * n, 60, 80.0 + 90 * n, 160), label, 0.5)
        for n, label in enumerate("aba")
    ]
    pixels = drawn_pixels(DetectionsResult(tuple(boxes)))
    assert [tuple(pixels[160, 50 + 90 * n]) for n in range(3)] == [
        PALETTE[0],
        PALETTE[1],
        PALETTE[0],
    ]


def test_a_mask_tints_its_inside_but_not_its_hole() -> None:
    pixels = drawn_pixels(InstancesResult((Instance((100, 60, 200, 160), "a", 0.5, (RING, HOLE)),)))
    assert tuple(pixels[110, 115]) not in (GREY, PALETTE[0])
    assert tuple(pixels[110, 150]) == GREY
    assert tuple(pixels[110, 130]) == PALETTE[0]


def test_a_quad_is_drawn_through_its_corners() -> None:
    quad = ((100.0, 60.0), (200.0, 100.0), (190.0, 150.0), (90.0, 110.0))
    pixels = drawn_pixels(TextRegionsResult((TextRegion(quad, "HI", 0.5),)))
    assert tuple(pixels[80, 150]) == PALETTE[0]
    assert tuple(pixels[70, 195]) == GREY  # outside the quad, inside the box around it


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (0, 0, 1, 1), (299, 199, 300, 200)])
def test_a_box_at_the_border_is_drawn(box: tuple[float, float, float, float]) -> None:
    draw_answer(IMAGE, answer(DetectionsResult((Detection(box, "größer 円", 1.0),)), SIZE))


def test_the_space_below_the_image_grows_with_the_text() -> None:
    short, long = (
        draw_answer(IMAGE, answer(TextResult(text), SIZE)) for text in ("word", "word " * 100)
    )
    assert short.width == long.width == 300
    assert 200 < short.height < long.height


def test_a_comparison_has_one_panel_for_each_model_and_one_colour_for_each_label() -> None:
    first = answer(DetectionsResult((Detection((100, 60, 200, 160), "a", 0.5),)), SIZE)
    second = answer(
        DetectionsResult(
            (Detection((10, 20, 50, 60), "b", 1), Detection((100, 60, 200, 160), "a", 1))
        ),
        SIZE,
    )
    picture = np.asarray(
        draw_comparison(IMAGE, Comparison("r", "object_detection", SIZE, (first, second)))
    )
    assert picture.shape[1] > 600
    in_left = set(map(tuple, picture[:, :300].reshape(-1, 3)))
    in_right = set(map(tuple, picture[:, -300:].reshape(-1, 3)))
    assert PALETTE[0] in in_left & in_right
    assert PALETTE[1] in in_right - in_left


def test_the_error_of_a_failed_model_is_below_the_image() -> None:
    failure = ModelFailure(
        "other", ErrorDetail("unsupported_task", "it does not offer the task", "task", "r")
    )
    picture = draw_comparison(
        IMAGE, Comparison("r", "ocr", SIZE, (answer(TextResult(""), SIZE), failure))
    )
    assert picture.height > draw_answer(IMAGE, answer(TextResult(""), SIZE)).height


def test_a_photo_is_opened_upright(tmp_path: Path) -> None:
    exif = IMAGE.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    IMAGE.save(tmp_path / "photo.jpg", exif=exif)
    assert open_upright(tmp_path / "photo.jpg").size == (200, 300)
