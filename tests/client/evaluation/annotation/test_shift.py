"""Images in numbers, and those unlike the labelled ones: noticed, in the part where they are."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diptych_client.evaluation.annotation.shift import COLOURS, Appearance, appearance, find_shift
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


def images(
    seed: int, num: int, folder: str, shift: float = 0.0, size_px: float = 384.0
) -> list[Appearance]:
    """Return images with a constant, a shifted, and a plain and a counted number."""
    rng = np.random.default_rng(seed)
    appearances = []
    for index in range(num):
        groups = {
            "size": (size_px,),
            "sharpness": (rng.normal(shift),),
            "answers": (rng.normal(), float(rng.integers(0, 4))),
        }
        appearances.append(Appearance(f"{folder}/{index}.jpg", size_px, groups))
    return appearances


def test_equal_images_are_rarely_told_apart() -> None:
    appearances = [find_shift(images(n, 50, "a"), images(n + 500, 40, "b")) for n in range(20)]
    assert sum(shift is not None for shift in appearances) <= 2


def test_difference_everywhere_leaves_nothing() -> None:
    shift = find_shift(images(0, 60, "labelled"), images(1, 40, "new", 4.0))
    assert shift is not None
    assert (shift.most, shift.parts) == ("sharpness", ())
    assert shift.has(images(2, 1, "any")[0])
    names = "new/0.jpg, new/1.jpg, new/2.jpg, new/3.jpg, new/4.jpg"
    assert shift.sentence().endswith(f"nothing is accepted; label some of them, such as {names}")


def test_differing_folder_is_left_out() -> None:
    others = [*images(1, 60, "day"), *images(2, 20, "night", 4.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert [(part.name, part.num_images) for part in shift.parts] == [("folder night", 20)]
    assert shift.has(images(3, 1, "night")[0])
    assert not shift.has(images(3, 1, "day")[0])
    assert "folder night (20 sampled images, such as night/0.jpg, " in shift.sentence()
    again = find_shift(images(0, 90, "night"), others)  # folders of two places with one name
    assert again is not None
    assert again.parts == shift.parts
    few = [*images(1, 60, "day"), *images(2, 7, "night", 4.0)]
    assert find_shift(images(0, 90, "labelled"), few) is None


def test_folder_of_a_labelled_kind_is_alike() -> None:
    """Folders differ from each other, but none from the labelled images of its kind."""
    labelled = [*images(0, 60, "labelled"), *images(1, 30, "labelled", 4.0)]
    others = [*images(2, 40, "day"), *images(3, 20, "night", 4.0)]
    assert find_shift(labelled, others) is None
    new = images(4, 20, "fog", -4.0)
    shift = find_shift(labelled, [*others, *new])
    assert shift is not None
    assert [part.name for part in shift.parts] == ["folder fog"]


def test_differing_size_is_left_out() -> None:
    others = [*images(1, 60, "all"), *images(2, 20, "all", size_px=22.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert [part.name for part in shift.parts] == ["images of about 16 px"]
    assert shift.has(images(3, 1, "all", size_px=20.0)[0])
    assert not shift.has(images(3, 1, "all", size_px=400.0)[0])


def test_differing_cluster_is_left_out() -> None:
    others = [*images(1, 60, "all"), *images(2, 25, "all", 6.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert shift.parts
    assert all(part.name.startswith("cluster ") for part in shift.parts)
    are_left_out = [shift.has(image) for image in images(3, 40, "all", 6.0)]
    are_kept = [not shift.has(image) for image in images(3, 40, "all")]
    assert np.mean(are_left_out) > 0.9
    assert np.mean(are_kept) > 0.9


def coloured(seed: int, num: int, folder: str, first: int) -> list[Appearance]:
    """Return images that each have one of six colours, from the first on."""
    rng = np.random.default_rng(seed)
    appearances = []
    for index, colour in enumerate(rng.integers(first, first + 6, num).tolist()):
        shares = np.eye(12)[colour].tolist()
        groups = {"answers": (rng.normal(),), COLOURS: tuple(shares)}
        appearances.append(Appearance(f"{folder}/{index}.jpg", 384.0, groups))
    return appearances


def test_small_folder_of_other_colours_is_left_out() -> None:
    others = [*coloured(1, 30, "day", 0), *coloured(2, 10, "tinted", 6)]
    shift = find_shift(coloured(0, 60, "labelled", 0), others)
    assert shift is not None
    assert shift.most == COLOURS
    assert [part.name for part in shift.parts] == ["folder tinted"]


def test_small_folder_between_others_is_left_out() -> None:
    labelled = [*images(0, 30, "labelled", -3.0), *images(1, 30, "labelled", 3.0)]
    others = [*images(2, 15, "day", -3.0), *images(3, 15, "day", 3.0), *images(4, 10, "fog")]
    shift = find_shift(labelled, others)
    assert shift is not None
    assert [part.name for part in shift.parts] == ["folder fog"]
