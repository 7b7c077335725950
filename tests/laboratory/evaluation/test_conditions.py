import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.scenes import Scene, questions
from export.scenes.truth import DetectionsTruth, LabelledBox
from laboratory.evaluation import CONDITIONS, evaluation_scene

EXPECTED = {
    "plain": ((384, 384), "PNG"),
    "small": ((100, 100), "PNG"),
    "large": ((2000, 2000), "PNG"),
    "jpeg": ((384, 384), "JPEG"),
    "blurred": ((384, 384), "PNG"),
    "recoloured": ((384, 384), "PNG"),
    "stretched": ((576, 384), "PNG"),
    "40px": ((40, 40), "PNG"),
    "22px": ((22, 22), "PNG"),
}
SCENES = [evaluation_scene(index) for index in range(4)]


def decoded(name: str, scene: Scene) -> Image.Image:
    return Image.open(io.BytesIO(CONDITIONS[name](scene).data))


def pixels(name: str, scene: Scene) -> NDArray[np.int_]:
    return np.asarray(decoded(name, scene).convert("RGB"), dtype=np.int_)


def true_boxes(scene: Scene, size_wh: tuple[int, int]) -> tuple[LabelledBox, ...]:
    (question,) = (question for question in questions(scene) if question.name == "object_detection")
    truth = question.scaled(size_wh).truth
    assert isinstance(truth, DetectionsTruth)
    return truth.boxes


def test_every_condition_has_an_expectation() -> None:
    assert set(CONDITIONS) == set(EXPECTED)


@pytest.mark.parametrize("name", CONDITIONS)
def test_image_has_the_size_and_format_of_its_condition(name: str) -> None:
    image = CONDITIONS[name](SCENES[0])
    file = decoded(name, SCENES[0])
    assert (file.size, file.format) == (
        image.size_wh,
        image.media_type.removeprefix("image/").upper(),
    )
    assert (file.size, file.format) == EXPECTED[name]


@pytest.mark.parametrize("name", ["plain", "small", "large", "jpeg", "blurred", "stretched"])
def test_objects_are_at_their_scaled_true_boxes(name: str) -> None:
    """JPEG and blurring change the colour at an object's centre a little, hence the tolerance."""
    for scene in SCENES:
        shown = pixels(name, scene)
        height, width, _ = shown.shape
        for drawn, box in zip(scene.objects, true_boxes(scene, (width, height)), strict=True):
            left, top, right, bottom = box.box_xyxy
            found = shown[int((top + bottom) / 2), int((left + right) / 2)]
            assert np.abs(found - drawn.rgb).max() <= 12


@pytest.mark.parametrize("name", ["jpeg", "blurred"])
def test_jpeg_and_blurred_differ_little_from_plain(name: str) -> None:
    for scene in SCENES:
        difference = np.abs(pixels(name, scene) - pixels("plain", scene))
        assert 0 < difference.mean() < 6


def test_other_colours_are_the_same_channels_in_another_order() -> None:
    for scene in SCENES:
        red, green, blue = np.moveaxis(pixels("plain", scene), 2, 0)
        assert (pixels("recoloured", scene) == np.stack([green, blue, red], axis=2)).all()


def test_blurred_edges_are_softer() -> None:
    for scene in SCENES:
        steepest, blurred = (
            np.abs(np.diff(pixels(name, scene), axis=1)).max() for name in ("plain", "blurred")
        )
        assert blurred < 0.6 * steepest
