"""Files of other formats become JPEG or PNG, page by page, within limits."""

import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from diptych_client import UnreadableFile, conversion
from diptych_client.conversion import converted, pages_of, read_image_file, split_page
from diptych_client.drawing import open_upright
from diptych_client.image_sources import downscaled, encoded_image
from diptych_client.inputs import Opening, Problems, find_images, open_images
from tests.support.image_files import ORIENTATION, colour_steps, encoded

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


def test_whole_name_of_a_file_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "a.png#page=2"
    path.write_bytes(b"file")
    assert split_page(path) == (path, None)
    assert encoded_image(str(path)) == b"file"


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
