"""Images in numbers, and those unlike the labelled ones."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diptych_client.evaluation.annotation.shift import appearance, differing_images
from diptych_client.evaluation.questions import Record
from diptych_client.geometry import ImageSize
from diptych_client.inputs import ImageFile
from diptych_client.results import Detection, DetectionsResult, Result, TextResult
from tests.support.client_answers import answer

LABELS = ("cat", "dog")
FOUND = DetectionsResult(
    (Detection((0.0, 0.0, 10.0, 10.0), "dog", 0.5), Detection((0.0, 0.0, 20.0, 45.0), "Dog", 0.75))
)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def measured(image: Image.Image, result: Result = FOUND) -> list[float]:
    file = io.BytesIO()
    image.save(file, "PNG")
    record = Record(ImageFile("a.png", 1, 1), replace(answer(result), image=ImageSize(*image.size)))
    return appearance((record,), file.getvalue(), LABELS)


def test_image_and_answer_are_numbers() -> None:
    half_red = Image.new("RGB", (100, 50))
    half_red.paste((200, 0, 0), (0, 0, 50, 50))
    numbers = measured(half_red)
    assert numbers[:5] == [math.log(100), math.log(50), 100, 0, 0]
    assert numbers[-5:] == pytest.approx([0, 2, 2, 0.625, 20])
    assert measured(half_red, DetectionsResult(()))[-5:] == [0] * 5
    assert measured(half_red, TextResult("EXIT"))[-1] == 4
    blurred = measured(NOISE.filter(ImageFilter.GaussianBlur(1.5)), TextResult(""))
    assert blurred[-2] < 0.5 * measured(NOISE, TextResult(""))[-2]


def images(seed: int, num: int, shift: float = 0.0) -> list[list[float]]:
    """Return images with a constant, a shifted, a plain and a counted number."""
    rng = np.random.default_rng(seed)
    appearances = []
    for _ in range(num):
        appearances.append([1.0, rng.normal(shift), rng.normal(), float(rng.integers(0, 4))])
    return appearances


def test_equal_images_are_rarely_told_apart() -> None:
    num_alarms = 0
    for draw in range(200):
        num_alarms += bool(differing_images(images(draw, 60), images(1000 + draw, 40)))
    assert num_alarms <= 12  # 6 are expected


def test_differing_images_are_named() -> None:
    labelled = images(0, 90)
    assert len(differing_images(labelled, images(1, 40, 4.0))) == 5
    mixed = [*images(1, 60), *images(2, 20, 4.0)]
    indices = differing_images(labelled, mixed)
    assert (len(indices), min(indices) >= 60) == (5, True)
    of_both = [*labelled, *images(3, 90, 4.0)]
    assert differing_images(of_both, images(4, 40, 4.0)) == []
    assert differing_images(labelled, images(2, 7, 4.0)) == []
    assert differing_images([], mixed) == differing_images(labelled, []) == []
