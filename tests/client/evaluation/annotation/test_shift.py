"""Images in numbers, and those unlike the labelled ones."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diptych_client.evaluation.annotation.shift import Appearance, appearance, differing_images
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
    return list(appearance((record,), file.getvalue(), LABELS).numbers)


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


def images(seed: int, num: int, folder: str, shift: float = 0.0) -> list[Appearance]:
    """Return images with a constant, a shifted, a plain and a counted number."""
    rng = np.random.default_rng(seed)
    appearances = []
    for index in range(num):
        numbers = (1.0, rng.normal(shift), rng.normal(), float(rng.integers(0, 4)))
        appearances.append(Appearance(f"{folder}/{index}.jpg", numbers))
    return appearances


def test_equal_images_are_rarely_told_apart() -> None:
    num_alarms = 0
    for draw in range(200):
        others = images(1000 + draw, 40, "other")
        num_alarms += bool(differing_images(images(draw, 60, "labelled"), others))
    assert num_alarms <= 12  # 6 are expected


def test_differing_images_are_named() -> None:
    labelled = images(0, 90, "labelled")
    assert len(differing_images(labelled, images(1, 40, "new", 4.0))) == 5
    mixed = [*images(1, 60, "day"), *images(2, 20, "night", 4.0)]
    names = differing_images(labelled, mixed)
    assert [name.partition("/")[0] for name in names] == ["night"] * 5
    of_both = [*labelled, *images(3, 90, "labelled", 4.0)]
    assert differing_images(of_both, images(4, 40, "night", 4.0)) == []
    assert differing_images(labelled, images(2, 7, "night", 4.0)) == []
    assert differing_images([], mixed) == differing_images(labelled, []) == []
