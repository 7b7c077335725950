"""Images as callers hold them, and files of other formats, become JPEG, PNG or WebP files."""

import io
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

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
    UnreadableFile,
    conversion,
)
from diptych_client.conversion import converted, pages_of, read_image_file, split_page
from diptych_client.datasets.inputs import Opening, Problems, find_images, open_images
from diptych_client.drawing import open_upright
from diptych_client.image_sources import downscaled, encoded_image, restored
from tests.support.client_answers import TEXT, answer
from tests.support.image_files import ORIENTATION, colour_steps, encoded
from tests.support.scripted_services import Script, serving_rest

RGB = np.arange(256 - 4 * 5 * 3, 256, dtype=np.uint8).reshape(4, 5, 3)


def pixels(image: Any, bgr: bool = False) -> Any:
    with Image.open(io.BytesIO(encoded_image(image, bgr))) as opened:
        return np.asarray(opened)


def test_arrays_tensors_and_images_of_any_mode_are_sent() -> None:
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
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"):
        assert pixels(Image.new(mode, (5, 3))).shape[:2] == (3, 5)


def test_files_of_any_name_are_sent_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"file")
    with path.open("rb") as file:
        sources: list[Any] = [path, str(path), b"file", bytearray(b"file"), memoryview(b"file")]
        assert {encoded_image(source) for source in [*sources, file]} == {b"file"}
    path = tmp_path / "a.png#page=2"
    path.write_bytes(b"file")
    assert split_page(path) == (path, None)
    assert encoded_image(str(path)) == b"file"


def photo(size_wh: tuple[int, int], kind: str, orientation: int = 1) -> bytes:
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
    smaller = downscaled(photo((1200, 900), kind, orientation), 100_000)
    assert smaller is not None
    assert smaller.original == ImageSize(*upright)
    with Image.open(io.BytesIO(smaller.data)) as image:
        assert 90_000 < image.width * image.height <= 100_000
        assert image.width / image.height == pytest.approx(upright[0] / upright[1], rel=0.01)
        assert image.convert("RGB").getpixel((5, 5)) == pytest.approx((9, 99, 200), abs=6)


def test_pixels_sides_and_bytes_are_bounded() -> None:
    for size_wh in ((12_000, 9_000), (21_000, 5)):  # more pixels than Image.open reads
        smaller = downscaled(photo(size_wh, "PNG"), 1_000_000)
        assert smaller is not None
        assert smaller.original == ImageSize(*size_wh)
        with Image.open(io.BytesIO(smaller.data)) as image:
            assert max(image.size) <= 20_000
    assert downscaled(photo((30, 20), "PNG") + bytes(20_000_000), 600) is not None
    small = photo((30, 20), "PNG")
    for data in (small, small[:40], b"\xff\xd8", b"text", b""):
        assert downscaled(data, 600) is None


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
    path.write_bytes(photo((400, 200), "PNG"))
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


UPRIGHT = {"TIFF": (32, 64), "AVIF": (32, 64), "GIF": (64, 32), "BMP": (64, 32), "HEIF": (64, 32)}


@pytest.fixture(autouse=True)
def _heif_encoder() -> Iterator[None]:
    pillow_heif.register_heif_opener()
    yield
    Image.SAVE.pop("HEIF")
    for formats in (Image.OPEN, Image.SAVE_ALL):
        formats.pop("HEIF", None)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def tones(image: Image.Image) -> Any:
    return image.convert("RGB").getpixel((9, 9))


def page(color: str = "red") -> Image.Image:
    return Image.new("RGB", (64, 32), color)


def paged(kind: str) -> bytes:
    others = [page("lime"), page("blue")]
    return encoded(page(), kind, save_all=True, append_images=others)


@pytest.mark.parametrize("kind", UPRIGHT)
def test_file_of_another_format_is_sent_upright(kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options: dict[str, Any] = {"exif": exif} if UPRIGHT[kind] == (32, 64) else {}
    data = encoded(colour_steps(), kind, **options)
    for source in (data, io.BytesIO(data)):
        image = opened(encoded_image(source))
        assert image.format == ("JPEG" if kind in ("AVIF", "HEIF") else "PNG")
        assert image.size == UPRIGHT[kind]
        rgb = image.convert("RGB").rotate(90 if options else 0, expand=True)
        assert np.abs(np.asarray(rgb) - np.asarray(colour_steps(), int)).mean() < 8


@pytest.mark.parametrize("suffix", ["tiff", "pdf"])
def test_each_page_is_an_image_of_a_folder(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"scan.{suffix.upper()}"
    path.write_bytes(paged(suffix))
    (tmp_path / "a.bmp").write_bytes(encoded(page(), "BMP"))
    names = [f"{path.name}#page={number}" for number in (1, 2, 3)]
    images = find_images(tmp_path)
    assert [image.name for image in images] == ["a.bmp", *names]
    assert images[1].size_bytes == path.stat().st_size
    opening = Opening(tmp_path / "work", Problems())
    for inputs, expected in (([str(path)], names), ([f"{path}#page=2"], names[1:2])):
        store, images = open_images(inputs, opening).images()
        assert [image.name for image in images] == expected
    assert tones(open_upright(store.path / names[1]))[1] > 250
    assert not caplog.records
    assert tones(opened(encoded_image(path)))[0] > 250
    assert "the first is sent" in caplog.text
    for number in (0, 4):
        with pytest.raises(UnreadableFile, match="cannot convert the image"):
            encoded_image(f"{path}#page={number}")
    with pytest.raises(UnreadableFile, match="there is no page 2"):
        encoded_image(_written(tmp_path / "a.png", encoded(page())) + "#page=2")


def _written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_pages_bytes_and_pixels_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conversion, "MAX_PAGES", 2)
    for kind in ("tiff", "pdf"):
        path = Path(_written(tmp_path / f"a.{kind}", paged(kind)))
        assert len(pages_of(tmp_path, path.name)) == 2
        assert caplog.text.count("has more than 2 pages") == (1 if kind == "tiff" else 2)
    monkeypatch.setattr(conversion, "MAX_PDF_PIXELS", 512)
    assert opened(read_image_file(path)).size == (32, 16)
    monkeypatch.setattr(conversion, "MAX_CONVERTED_PIXELS", 64 * 32 - 1)
    monkeypatch.setattr(GifImageFile, "load", None)  # `seek` decodes the frames before
    for number in (None, 3):
        with pytest.raises(OSError, match="2048 pixels; the maximum is 2047"):
            converted(paged("GIF"), number)
    monkeypatch.setattr(conversion, "MAX_CONVERTED_BYTES", 100)
    with pytest.raises(OSError, match="bytes; the maximum is 100"):
        read_image_file(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about tags of a TIFF
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "BMP", "AVIF", "HEIF", "PDF"])
def test_damaged_file_is_an_error_of_the_client(kind: str, tmp_path: Path) -> None:
    data = encoded(colour_steps(), kind)
    for length in (14, 40, len(data) // 2):
        path = Path(_written(tmp_path / "a.tif", data[:length]))
        assert pages_of(tmp_path, path.name) == [path.name]
        with pytest.raises(OSError, match="cannot convert the image"):
            read_image_file(path)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, kind in (("pillow_heif", "HEIF"), ("pypdfium2", "PDF")):
        data = encoded(page(), kind)
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UnreadableFile, match="with the extra `formats`"):
            encoded_image(data)


def test_sixteen_bit_tones_become_eight_bit() -> None:
    tones = np.array([[0, 300, 40_000, 65_535]], np.uint16)
    for source in (tones, Image.fromarray(tones), encoded(Image.fromarray(tones), "TIFF")):
        sent = opened(encoded_image(source)).convert("L")
        assert np.asarray(sent).tolist() == [[0, 1, 156, 255]]
    for mode in "FI":
        with pytest.raises(UnreadableFile, match="its tones have 32 bits"):
            encoded_image(encoded(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize(
    ("image", "sent"),
    [
        (Image.new("RGBA", (64, 32), (255, 0, 0, 127)), (255, 128, 128)),
        (Image.new("LA", (64, 32), (0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((32, 64), 40_000, np.uint16)), (156, 156, 156)),
    ],
)
def test_sent_image_is_eight_bit_over_white(image: Image.Image, sent: Any, tmp_path: Path) -> None:
    data = encoded(image, "PNG")
    smaller = downscaled(data, 512)
    assert smaller is not None
    path = Path(_written(tmp_path / "a.png", data))
    assert open_upright(path).getpixel((9, 9)) == sent
    files = [smaller.data]
    if image.mode == "RGBA":
        files.append(encoded_image(encoded(image, "AVIF")))
    for file in files:
        assert tones(opened(file)) == pytest.approx(sent, abs=2)


def test_pages_of_one_file_are_read_by_threads(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.pdf", paged("PDF"))
    with ThreadPoolExecutor(8) as threads:
        files = list(threads.map(encoded_image, [f"{path}#page={1 + i % 3}" for i in range(48)]))
    assert len(set(files)) == 3
