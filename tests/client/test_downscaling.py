"""A large image is sent smaller, and its answer is in the original's pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych_client import Answer, Client, DetectionsResult, ImageSize, TaskParameters
from diptych_client.downscaling import downscaled, restored
from diptych_client.geometry import (
    RunLengthMask,
    compressed_run_lengths,
    run_length_mask,
    uncompressed_run_lengths,
)
from diptych_client.results import (
    Detection,
    Instance,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
)
from tests.support.client_answers import answer
from tests.support.scripted_services import Script, serving_rest


def encoded(size_wh: tuple[int, int], kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", size_wh, (9, 99, 200)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "upright"), [(1, (1200, 900)), (6, (900, 1200))])
def test_a_larger_image_is_sent_upright_within_the_limit(
    kind: str, orientation: int, upright: tuple[int, int]
) -> None:
    found = downscaled(encoded((1200, 900), kind, orientation), 100_000, "x")
    assert found is not None
    assert (found.original.width, found.original.height) == upright
    with Image.open(io.BytesIO(found.data)) as image:
        assert 90_000 < image.width * image.height <= 100_000
        assert image.width / image.height == pytest.approx(upright[0] / upright[1], rel=0.01)
        pixel = np.asarray(image.convert("RGB"))[5, 5]
    assert np.allclose(pixel, (9, 99, 200), atol=6)


def test_a_small_or_damaged_image_and_other_bytes_are_sent_as_they_are() -> None:
    small = encoded((30, 20), "PNG")
    for data in (small, small[:40], b"\xff\xd8", b"text", b""):
        assert downscaled(data, 100_000, "x") is None


def test_an_image_of_108_megapixels_is_sent() -> None:
    file = io.BytesIO()
    Image.new("L", (12_000, 9_000)).save(file, "PNG")
    found = downscaled(file.getvalue(), 1_000_000, "x")
    assert found is not None
    assert found.original == ImageSize(12_000, 9_000)


def test_the_shapes_of_an_answer_are_scaled_to_the_original() -> None:
    sent = ImageSize(4, 2)
    original = ImageSize(8, 6)
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)
    runs = compressed_run_lengths(uncompressed_run_lengths(mask))
    instance = Instance((0, 0, 2, 2), "a", 0.5, (((0, 0), (1, 0), (1, 1)),), None)
    masked = Instance((0, 0, 2, 2), "a", 0.5, None, RunLengthMask((2, 4), runs))
    region = TextRegion(((0, 0), (1, 0), (1, 1), (0, 1)), "t", 0.5)

    boxes = restored(answer(DetectionsResult((Detection((1, 1, 2, 2), "a", 0.5),)), sent), original)
    assert isinstance(boxes.result, DetectionsResult)
    assert boxes.image == original
    assert boxes.result.detections[0].box_xyxy == (2, 3, 4, 6)
    shapes = restored(answer(InstancesResult((instance, masked)), sent), original).result
    assert isinstance(shapes, InstancesResult)
    assert shapes.instances[0].polygons_xy == (((0, 0), (2, 0), (2, 3)),)
    assert shapes.instances[1].mask is not None
    large = run_length_mask(shapes.instances[1].mask)
    assert (large == mask.repeat(3, axis=0).repeat(2, axis=1)).all()
    regions = restored(answer(TextRegionsResult((region,)), sent), original).result
    assert isinstance(regions, TextRegionsResult)
    assert regions.text_regions[0].quad_xy[2] == (2, 3)


def test_a_client_with_a_limit_sends_image_and_region_smaller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded((400, 200), "PNG"))
    script = Script(
        [answer(DetectionsResult((Detection((0, 0, 100, 50), "a", 0.5),)), ImageSize(100, 50))]
    )
    with serving_rest(script) as url, Client(url, max_pixels=5000) as client:
        found = client.predict(path, "t", TaskParameters(region=(0, 0, 400, 200)))
    assert isinstance(found, Answer)
    assert found.image == ImageSize(400, 200)
    assert isinstance(found.result, DetectionsResult)
    assert found.result.detections[0].box_xyxy == (0, 0, 400, 200)
    assert b"[0.0, 0.0, 100.0, 50.0]" in script.received[0].body
    (note,) = caplog.messages
    assert note.startswith(f"{path} has 400 x 200 pixels; sent as 100 x 50")
