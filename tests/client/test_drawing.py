"""Pictures of answers: which pixels are drawn, and which remain unchanged."""

from pathlib import Path
from typing import Any

import numpy as np
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
    """Return the pixels (H, W, 3) of the picture; the image is at its top."""
    return np.asarray(draw_answer(IMAGE, answer(result, SIZE)))


def test_box_is_drawn_on_its_edges_with_a_label_that_fits() -> None:
    pixels = drawn_pixels(boxes((BOX, "HHH")))
    for x, y in ((100, 110), (200, 110), (150, 160), (150, 60)):
        assert tuple(pixels[y, x]) == PALETTE[0]
    assert (pixels[80:150, 110:190] == GREY).all()
    assert (pixels[170:200] == GREY).all()
    assert (pixels[50:58, 101:105] == PALETTE[0]).all(axis=2).any()
    assert (pixels[:40] == GREY).all()
    (label_rows,) = np.nonzero((pixels[:58] != GREY).any(axis=(1, 2)))
    assert tuple(pixels[label_rows.min(), 102]) == PALETTE[0]
    ink = np.all(pixels[:200] < 30, axis=2)
    assert ink[label_rows].any()
    assert not ink[60:].any()
    assert (drawn_pixels(boxes((BOX, "a\nb"))) == drawn_pixels(boxes((BOX, "a b")))).all()
    pixels = drawn_pixels(boxes(((0, 0, 300, 200), "größer 円")))
    assert (pixels[5:10, 3:20] == PALETTE[0]).all(axis=2).any()
    assert (pixels[25:190, 10:290] == GREY).all()


def test_mask_and_quad_have_their_shape() -> None:
    pixels = drawn_pixels(InstancesResult((Instance(BOX, "a", 0.5, (RING, HOLE)),)))
    assert tuple(pixels[110, 115]) not in (GREY, PALETTE[0])  # tinted
    assert tuple(pixels[110, 150]) == GREY  # the hole
    assert tuple(pixels[110, 130]) == PALETTE[0]
    pixels = drawn_pixels(TextRegionsResult((TextRegion(QUAD, "HI", 0.5),)))
    assert tuple(pixels[80, 150]) == PALETTE[0]
    assert tuple(pixels[70, 195]) == GREY  # outside the quad, inside the box around it


def test_space_below_grows_with_the_text() -> None:
    short = drawn_pixels(TextResult("word"))
    long = drawn_pixels(TextResult("word " * 100))
    assert (short[:200] == GREY).all()
    assert (short[200:] < 100).any()
    assert (short.shape[1], long.shape[1]) == (SIZE.width, SIZE.width)
    assert len(long) > len(short) + 50


def test_comparison_has_a_panel_for_each_model() -> None:
    first = answer(boxes((BOX, "a")), SIZE)
    second = answer(boxes(((10, 20, 50, 60), "b"), (BOX, "a")), SIZE)
    failure = ModelFailure("other", ErrorDetail("unsupported_task", "not offered", "task", "r"))
    comparison = Comparison("r", "object_detection", SIZE, (first, second, failure))
    picture = np.asarray(draw_comparison(IMAGE, comparison))
    assert tuple(picture[160, 150]) == tuple(picture[160, 458]) == PALETTE[0]  # of one label
    assert tuple(picture[60, 338]) == PALETTE[1]
    assert (picture[:200, 616:] == GREY).all()
    assert (picture[220:, 616:] < 100).any()  # the error


def test_photo_is_opened_upright(tmp_path: Path) -> None:
    exif = IMAGE.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    IMAGE.save(tmp_path / "photo.jpg", exif=exif)
    assert open_upright(tmp_path / "photo.jpg").size == (200, 300)
