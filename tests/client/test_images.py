"""Images as callers hold them become files; large ones are sent smaller, answers scaled back."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych_client import (
    Client,
    Comparison,
    Detection,
    DetectionsResult,
    DiptychError,
    ImageSize,
    Instance,
    InstancesResult,
    InvalidRequest,
    TaskParameters,
    TextRegion,
    TextRegionsResult,
)
from diptych_client.image_sources import downscaled, encoded_image, restored
from tests.support.client_answers import TEXT, answer
from tests.support.scripted_services import Script, serving_rest

RGB = np.arange(256 - 4 * 5 * 3, 256, dtype=np.uint8).reshape(4, 5, 3)


def pixels(image: Any, bgr: bool = False) -> Any:
    with Image.open(io.BytesIO(encoded_image(image, bgr))) as opened:
        return np.asarray(opened)


def test_arrays_and_tensors_are_rgb_or_bgr() -> None:
    assert (pixels(RGB) == RGB).all()
    assert (pixels(RGB[:, :, ::-1], bgr=True) == RGB).all()
    rgba = np.dstack([RGB, np.full((4, 5), 9, np.uint8)])
    assert (pixels(rgba[:, :, [2, 1, 0, 3]], bgr=True) == rgba).all()
    assert (pixels(RGB[:, :, 0]) == pixels(RGB[:, :, :1])).all()
    assert (pixels((RGB / 255).astype(np.float16)) == RGB).all()
    assert (pixels(RGB.astype(np.int64)) == pixels(RGB.astype(np.uint16) * 257)).all()
    assert (pixels(RGB > 220) == (RGB > 220) * 255).all()
    tensor = torch.from_numpy(RGB)
    assert (pixels(tensor) == RGB).all()
    assert (pixels((tensor.permute(2, 0, 1) / 255).bfloat16()) - RGB.astype(int) <= 1).all()
    assert (pixels((tensor / 255).requires_grad_()) == RGB).all()


def test_files_are_sent_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"file")
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), b"file", bytearray(b"file"), memoryview(b"file")]
        assert {encoded_image(source) for source in [*sources, file]} == {b"file"}


def test_pil_image_of_any_mode_is_sent() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"):
        assert pixels(Image.new(mode, (5, 3))).shape[:2] == (3, 5)


def encoded(size_wh: tuple[int, int], kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", size_wh, (9, 99, 200)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB + np.int64(1), r"floats from 0 to 1, integers from 0 to 255, .* int64 \(4, 5, 3\)"),
        (RGB - np.int64(200), "got int64"),
        (RGB * 1j, "got complex128"),
        (RGB * 0.5, "got float64"),
        (RGB / -255, "got float64"),
        (np.full((2, 2), np.nan), "got float64"),
        (np.zeros((2, 2, 5), np.uint8), r"got uint8 \(2, 2, 5\)"),
        (np.zeros((0, 2), np.uint8), r"got uint8 \(0, 2\)"),
        ([RGB], "an image must be a path, a URL.* got list"),
        (io.StringIO("text"), "got StringIO"),
        ("none.png", "cannot read the image: .*No such file"),
        ("data:" + "A" * 9000, "cannot read the image: .{300}$"),
        ("a\0.png", "cannot read the image"),
    ],
)
def test_other_image_is_an_error_of_the_client(image: Any, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        encoded_image(image)


def test_parameters_and_options_are_given_by_name() -> None:
    script = Script([])
    labels = ' 5" pipe ,\r\n"red car,\rparked",'
    parameters: Mapping[str, Any] = {"labels": labels, "phrases": ["5, 6"]}
    with serving_rest(script) as url, Client(url) as client:
        client.predict(b"image", "t", parameters, options={"seed": 3})
        with pytest.raises(InvalidRequest, match="unexpected keyword argument 'lables'"):
            client.predict(b"image", "t", {"lables": ["a"]})
        with pytest.raises(InvalidRequest, match="cannot split a list: field larger than"):
            client.predict(b"image", "t", {"labels": "a" * 200_000})
    (request,) = script.received
    for name, value in (
        ("labels", r'["5\" pipe", "red car, parked"]'),
        ("phrases", '["5, 6"]'),
        ("seed", "3"),
    ):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in request.body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "upright"), [(1, (1200, 900)), (6, (900, 1200))])
def test_large_image_is_sent_upright_within_the_limit(
    kind: str, orientation: int, upright: tuple[int, int]
) -> None:
    smaller = downscaled(encoded((1200, 900), kind, orientation), 100_000)
    assert smaller is not None
    assert smaller.original == ImageSize(*upright)
    with Image.open(io.BytesIO(smaller.data)) as image:
        assert 90_000 < image.width * image.height <= 100_000
        assert image.width / image.height == pytest.approx(upright[0] / upright[1], rel=0.01)
        assert image.convert("RGB").getpixel((5, 5)) == pytest.approx((9, 99, 200), abs=6)


def test_small_or_damaged_image_is_sent_unchanged() -> None:
    small = encoded((30, 20), "PNG")
    for data in (small, small[:40], b"\xff\xd8", b"text", b""):
        assert downscaled(data, 600) is None


def test_pixels_sides_and_bytes_are_bounded() -> None:
    for size_wh in ((12_000, 9_000), (21_000, 5)):  # more pixels than Image.open reads
        smaller = downscaled(encoded(size_wh, "PNG"), 1_000_000)
        assert smaller is not None
        assert smaller.original == ImageSize(*size_wh)
        with Image.open(io.BytesIO(smaller.data)) as image:
            assert max(image.size) <= 20_000
    assert downscaled(encoded((30, 20), "PNG") + bytes(20_000_000), 600) is not None


def test_answer_is_scaled_to_the_original() -> None:
    size = ImageSize(4, 2)
    instance = Instance((1, 1, 2, 2), "a", 0.5, (((0, 0), (1, 0), (1, 1)),))
    scaled = replace(instance, box_xyxy=(2, 3, 4, 6), polygons_xy=(((0, 0), (2, 0), (2, 3)),))
    region = TextRegion(((0, 0), (1, 0), (1, 1), (0, 1)), "t", 0.5)
    regions = (replace(region, quad_xy=((0, 0), (2, 0), (2, 3), (0, 3))),)
    small = (answer(InstancesResult((instance,)), size), answer(TextRegionsResult((region,)), size))
    comparison = Comparison("id", "t", size, (*small, answer(TEXT, size)))
    large = restored(comparison, ImageSize(8, 6))
    assert large.image == ImageSize(8, 6)
    results = (InstancesResult((scaled,)), TextRegionsResult(regions), TEXT)
    assert large.answers == tuple(answer(result, ImageSize(8, 6)) for result in results)


def test_client_sends_image_and_region_smaller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded((400, 200), "PNG"))
    small = DetectionsResult((Detection((0, 0, 100, 50), "a", 0.5),))
    script = Script([answer(small, ImageSize(100, 50))])
    with serving_rest(script) as url, Client(url, max_pixels=5000) as client:
        large = client.predict(path, "t", TaskParameters(region=(0, 0, 400, 200)))
        with pytest.raises(InvalidRequest, match="cannot be scaled"):
            client.predict(path, "t", options={"mask_format": "rle"})
    assert large.image == ImageSize(400, 200)
    assert large.result == DetectionsResult((Detection((0, 0, 400, 200), "a", 0.5),))
    (request,) = script.received
    assert b"[0.0, 0.0, 100.0, 50.0]" in request.body
    megabytes = f"{path.stat().st_size / 1e6:.1f} MB"
    message = f"an image of 400 x 200 pixels, {megabytes}, is sent as 100 x 50, 0.0 MB"
    assert caplog.messages[0] == message
