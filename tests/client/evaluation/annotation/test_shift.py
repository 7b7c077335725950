"""Images in numbers, and those unlike the labelled ones: noticed, in the folder where they are."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diptych_client.evaluation.annotation.shift import Appearance, appearance, find_shift
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


@pytest.mark.parametrize("num_folders", [1, 4])
def test_equal_images_are_rarely_told_apart(num_folders: int) -> None:
    num_alarms = 0
    for draw in range(100):
        others = []
        for folder in range(num_folders):
            others += images(1000 * draw + folder, 20, f"{folder}")
        num_alarms += find_shift(images(draw + 7, 60, "labelled"), others) is not None
    assert num_alarms <= 7  # 3 are expected


def test_difference_everywhere_leaves_nothing() -> None:
    shift = find_shift(images(0, 60, "labelled"), images(1, 40, "new", 4.0))
    assert shift is not None
    assert shift.folders == ()
    assert shift.has("any/0.jpg")
    assert shift.sentence().startswith("images differ from the labelled ones: none of their labels")
    assert shift.sentence().count("new/") == 5


def test_differing_folder_is_left_out() -> None:
    others = [*images(1, 60, "day"), *images(2, 20, "night", 4.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert shift.folders == ("night",)
    assert (shift.has("night/x.jpg"), shift.has("day/x.jpg")) == (True, False)
    assert "images in night differ" in shift.sentence()
    assert shift.sentence().count("night/") == 5
    assert find_shift(images(0, 90, "labelled"), images(2, 7, "night", 4.0)) is None
    assert find_shift([], others) is find_shift(images(0, 90, "labelled"), []) is None


def test_folder_of_a_labelled_kind_is_alike() -> None:
    """Folders differ from each other, but none from the labelled images of its kind."""
    labelled = [*images(0, 60, "labelled"), *images(1, 30, "labelled", 4.0)]
    others = [*images(2, 40, "day"), *images(3, 20, "night", 4.0)]
    assert find_shift(labelled, others) is None
    shift = find_shift(labelled, [*others, *images(4, 20, "fog", -4.0)])
    assert shift is not None
    assert shift.folders == ("fog",)


def test_differing_images_of_a_mixed_folder_leave_nothing() -> None:
    others = [*images(1, 60, "all"), *images(2, 25, "all", 6.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert shift.has("all/0.jpg")
