"""Pictures of answers: which pixels are drawn, and which remain unchanged."""

from pathlib import Path
from typing import Any

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
BOX = (100.0, 60.0, 200.0, 160.0)
RING = ((100.0, 60.0), (200.0, 60.0), (200.0, 160.0), (100.0, 160.0))
HOLE = ((130.0, 90.0), (170.0, 90.0), (170.0, 130.0), (130.0, 130.0))
QUAD = ((100.0, 60.0), (200.0, 100.0), (190.0, 150.0), (90.0, 110.0))


def boxes(*labelled: tuple[Any, str]) -> DetectionsResult:
    return DetectionsResult(tuple(Detection(box, label, 0.5) for box, label in labelled))


def drawn_pixels(result: Result) -> np.ndarray:
    """Return the pixels (H, W, 3) of the image in the picture, without the title above it."""
    picture = draw_answer(IMAGE, answer(result, SIZE))
    title_px = next(y for y in range(picture.height) if picture.getpixel((299, y)) == GREY)
    return np.asarray(picture.crop((0, title_px, SIZE.width, title_px + SIZE.height)))


def test_box_is_drawn_on_its_edges() -> None:
    pixels = drawn_pixels(boxes((BOX, "HHH")))
    for x, y in ((100, 110), (200, 110), (150, 160), (150, 60)):
        assert tuple(pixels[y, x]) == PALETTE[0]
    assert (pixels[80:150, 110:190] == GREY).all()
    assert (pixels[170:] == GREY).all()
    above_box = pixels[:58]  # the label is in the middle of its background
    (background,) = np.nonzero((above_box != GREY).any(axis=(0, 2)))
    (ink,) = np.nonzero((above_box < 30).all(axis=2).any(axis=0))
    assert ink.min() - background.min() == pytest.approx(background.max() - ink.max(), abs=1)
    assert (drawn_pixels(boxes((BOX, "a\nb"))) == drawn_pixels(boxes((BOX, "a b")))).all()


def test_mask_and_quad_have_their_shape() -> None:
    pixels = drawn_pixels(InstancesResult((Instance(BOX, "a", 0.5, (RING, HOLE)),)))
    assert tuple(pixels[110, 115]) not in (GREY, PALETTE[0])  # tinted
    assert tuple(pixels[110, 150]) == GREY  # the hole
    assert tuple(pixels[110, 130]) == PALETTE[0]
    pixels = drawn_pixels(TextRegionsResult((TextRegion(QUAD, "HI", 0.5),)))
    assert tuple(pixels[80, 150]) == PALETTE[0]
    assert tuple(pixels[70, 195]) == GREY  # outside the quad, inside the box around it


def test_label_without_space_above_is_in_the_box() -> None:
    pixels = drawn_pixels(boxes(((0, 0, 300, 200), "größer 円")))
    assert (pixels[5:10, 3:20] == PALETTE[0]).all(axis=2).any()


def test_space_below_grows_with_the_text() -> None:
    heights = []
    for text in ("word", "word " * 100):
        picture = draw_answer(IMAGE, answer(TextResult(text), SIZE))
        assert picture.width == SIZE.width
        assert picture.getpixel((299, 0)) == (255, 255, 255)  # the title is above the image
        heights.append(picture.height)
    assert SIZE.height < heights[0] < heights[1] - 50


def test_comparison_has_a_panel_for_each_model() -> None:
    first = answer(boxes((BOX, "a")), SIZE)
    second = answer(boxes(((10, 20, 50, 60), "b"), (BOX, "a")), SIZE)
    failure = ModelFailure("other", ErrorDetail("unsupported_task", "not offered", "task", "r"))
    comparison = Comparison("r", "object_detection", SIZE, (first, second, failure))
    picture = np.asarray(draw_comparison(IMAGE, comparison))
    left, middle, right = (
        set(map(tuple, picture[:, start : start + 300].reshape(-1, 3))) for start in (0, 308, 616)
    )
    assert PALETTE[0] in left & middle  # a label has one colour in both
    assert PALETTE[1] in middle - left
    assert PALETTE[0] not in right
    assert (picture[220:, 616:] < 100).any()  # the error


def test_photo_is_opened_upright(tmp_path: Path) -> None:
    exif = IMAGE.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    IMAGE.save(tmp_path / "photo.jpg", exif=exif)
    assert open_upright(tmp_path / "photo.jpg").size == (200, 300)
