"""An image in numbers: each names what it measures."""

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from diptych_client.annotate.appearance import names, seen
from diptych_client.annotate.journal import Record
from diptych_client.geometry import ImageSize
from diptych_client.inputs import ImageFile
from diptych_client.results import Detection, DetectionsResult, Result, TextResult
from tests.support.client_answers import answer

LABELS = ("cat", "dog")
FOUND = DetectionsResult(
    (Detection((0.0, 0.0, 10.0, 10.0), "dog", 0.5), Detection((0.0, 0.0, 30.0, 30.0), "Dog", 0.75))
)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def measured(image: Image.Image, result: Result = FOUND) -> dict[str, float]:
    file = io.BytesIO()
    image.save(file, "PNG")
    size = ImageSize(*image.size)
    record = Record(ImageFile("a.png", 1, 1), replace(answer(result), image=size))
    values = seen([record], file.getvalue(), LABELS).values
    return dict(zip(names([record], LABELS), values, strict=True))


def test_what_is_answered_is_counted_by_label_with_its_scores() -> None:
    found = measured(Image.new("RGB", (100, 50)))
    assert (found["width"], found["height"]) == (100, 50)
    of = {name.removesuffix(" of some-model"): value for name, value in found.items()}
    assert (of["number of objects"], of["number of dog"], of["number of cat"]) == (2, 2, 0)
    assert (of["lowest score"], of["mean score"], of["highest score"]) == (0.5, 0.625, 0.75)
    nothing = measured(Image.new("RGB", (100, 50)), DetectionsResult(()))
    assert nothing["highest score of some-model"] == 0


def test_a_text_has_its_length() -> None:
    found = measured(Image.new("RGB", (8, 8)), TextResult("EXIT"))
    assert found["length of the text of some-model"] == 4


def test_brightness_colours_and_sharpness_are_measured() -> None:
    red = measured(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert (red["share of red"], red["share of blue"], red["colour"]) == (1, 0, 1)
    assert measured(Image.new("RGB", (8, 8), (0, 0, 255)))["share of blue"] == 1
    assert measured(Image.new("RGB", (1, 1), (255, 255, 255)))["brightness"] == 1
    blurred = measured(NOISE.filter(ImageFilter.GaussianBlur(1.5)))
    assert blurred["sharpness"] < 0.7 * measured(NOISE)["sharpness"]
