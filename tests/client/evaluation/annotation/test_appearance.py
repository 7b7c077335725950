"""An image in numbers: each names what it measures."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diptych_client.evaluation.annotation.shift import COLOURS, appearance
from diptych_client.evaluation.job import Record
from diptych_client.geometry import ImageSize
from diptych_client.inputs import ImageFile
from diptych_client.results import Detection, DetectionsResult, Result, TextResult
from tests.support.client_answers import answer

LABELS = ("cat", "dog")
FOUND = DetectionsResult(
    (Detection((0.0, 0.0, 10.0, 10.0), "dog", 0.5), Detection((0.0, 0.0, 30.0, 30.0), "Dog", 0.75))
)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def measured(image: Image.Image, result: Result = FOUND) -> Mapping[str, tuple[float, ...]]:
    file = io.BytesIO()
    image.save(file, "PNG")
    size = ImageSize(*image.size)
    record = Record(ImageFile("a.png", 1, 1), replace(answer(result), image=size))
    return appearance((record,), file.getvalue(), LABELS).groups


def test_answers_are_counted_with_scores() -> None:
    groups = measured(Image.new("RGB", (100, 50)))
    assert groups["size"] == (100, 50)
    number, *scores, size = groups["answers"]
    assert (number, scores) == (2, [0.5, 0.625, 0.75])
    assert size == pytest.approx(20 / math.sqrt(100 * 50))
    assert groups["labels"] == (0, 2)
    assert measured(Image.new("RGB", (100, 50)), DetectionsResult(()))["answers"] == (0,) * 5


def test_text_has_its_length() -> None:
    groups = measured(Image.new("RGB", (8, 8)), TextResult("EXIT"))
    assert (groups["answers"], groups["labels"]) == ((4,), ())


def test_pixels_are_measured() -> None:
    half_red = Image.new("RGB", (8, 8), (200, 200, 200))
    half_red.paste((255, 0, 0), (0, 0, 4, 8))
    red = measured(half_red)
    assert red["brightness"][2] == 0.5
    half_red.putpixel((0, 0), (0, 0, 255))  # a colour of 1 in 32 coloured pixels is an edge's
    assert [share for share in measured(half_red)[COLOURS] if share] == [31 / 32]
    assert max(red[COLOURS]) == 1
    assert measured(Image.new("RGB", (8, 8), (0, 0, 255)))[COLOURS] != red[COLOURS]
    white = measured(Image.new("RGB", (1, 1), (255, 255, 255)))
    assert (white["brightness"], white["sharpness"]) == ((1, 0, 0), (0,))
    blurred = measured(NOISE.filter(ImageFilter.GaussianBlur(1.5)))
    assert blurred["sharpness"][0] < 0.5 * measured(NOISE)["sharpness"][0]
